//! Reading files that somebody else puts there: plugins, certificates, keys, tokens and secrets. Their folder may be on a file system
//! that hangs, and they may be anything: a FIFO that nobody writes to, a device without an end, a file that grows while it is read.
//! Whoever reads them must neither wait for ever nor read without end, and somebody must learn which path it was.
//!
//! Every function here blocks, for [`PATIENCE`] at most. Call none of them while holding a lock that others need.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// How long a file or a folder is waited for. A local disk answers in milliseconds and a busy network file system within a second; what
/// takes longer is given up and logged, and whoever polls it tries again.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Most paths that are waited for although they were given up: each keeps a thread until the file system answers. A process reads fewer
/// than a dozen named files, and one after the other of a folder.
const HANGING: usize = 32;

/// What reading a path says that is given up. It does not name the time, so that each attempt ends with the same words.
const NO_ANSWER: &str =
    "does not answer: its file system hangs or is very slow; see that it is mounted and that its server can be reached";

/// The content of a regular file of at most `most` bytes.
///
/// # Errors
/// What the operating system says, or that it is not a regular file, is larger, or does not answer.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (_, content) = read_prefix(path, most.saturating_add(1))?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {most} bytes")));
    }
    Ok(content)
}

/// The first `most` bytes of a regular file, and what was known of it when it was opened: it may grow while it is read.
///
/// # Errors
/// What the operating system says, or that it is not a regular file, or does not answer.
pub fn read_prefix(path: &Path, most: u64) -> io::Result<(Metadata, Vec<u8>)> {
    let file = path.to_owned();
    in_time(path, move || {
        let (file, metadata) = open(&file)?;
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok((metadata, content))
    })
}

/// The names of a folder's entries, of which at most `most` are read: who can fill the folder must not fill the memory.
///
/// # Errors
/// What the operating system says, or that it does not answer.
pub fn list(folder: &Path, most: usize) -> io::Result<Vec<OsString>> {
    let path = folder.to_owned();
    in_time(folder, move || fs::read_dir(path)?.take(most).map(|entry| Ok(entry?.file_name())).collect())
}

/// Does something with a path on a thread of its own, and waits [`PATIENCE`] for it. What is given up is logged with its path; as long as
/// it has not ended, the same path is not tried again.
///
/// # Errors
/// Those of `work`, or that the path does not answer, which is [`io::ErrorKind::TimedOut`].
pub fn in_time<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    in_time_of(PATIENCE, path, work)
}

fn in_time_of<T: Send + 'static>(
    patience: Duration,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let no_answer = || io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER);
    {
        let hanging = hanging();
        if hanging.contains(path) || hanging.len() >= HANGING {
            return Err(no_answer());
        }
    }
    let (answer, answered) = sync_channel(1);
    let (started, of) = (Instant::now(), path.to_owned());
    thread::Builder::new().name("witan-file".into()).spawn(move || {
        let done = work();
        // Under the lock, so that it is either received in time or taken for one that hangs, and then removed below.
        let mut hanging = hanging();
        if hanging.remove(&of) {
            tracing::warn!(path = %of.display(), seconds = started.elapsed().as_secs(), "a path answers again");
        }
        // Nobody may be waiting any more.
        let _ = answer.send(done);
    })?;
    match answered.recv_timeout(patience) {
        Ok(done) => done,
        Err(RecvTimeoutError::Disconnected) => {
            Err(io::Error::other("the thread that read it panicked; please report it"))
        }
        Err(RecvTimeoutError::Timeout) => {
            let mut hanging = hanging();
            // It may have answered since.
            if let Ok(done) = answered.try_recv() {
                return done;
            }
            hanging.insert(path.to_owned());
            tracing::warn!(path = %path.display(), seconds = patience.as_secs(), "a path {NO_ANSWER}");
            Err(no_answer())
        }
    }
}

/// Opens a regular file. What is something else is not even opened, because opening a device may have an effect; what it becomes in
/// between is noticed on the open file, and opening it does not wait for whoever writes to it.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    regular(fs::metadata(path)?.file_type())?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    regular(metadata.file_type())?;
    Ok((file, metadata))
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "something else",
    };
    let why = format!("is {what}, and only regular files are read; put a file there");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Paths that were given up and have not answered since.
fn hanging() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static PATHS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    PATHS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;

    use super::*;

    fn fifo(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), b"content").unwrap();
        symlink(path("file"), path("link")).unwrap();
        assert_eq!(read(&path("link"), 7).unwrap(), b"content");
        assert!(read(&path("file"), 6).unwrap_err().to_string().contains("larger than 6"));
        assert_eq!(read_prefix(&path("file"), 3).unwrap().1, b"con");
        fifo(&path("fifo"));
        symlink(path("fifo"), path("to-fifo")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        let wrong = [("fifo", "a FIFO"), ("to-fifo", "a FIFO"), ("zero", "a device"), ("socket", "a socket")];
        for (name, what) in wrong.into_iter().chain([(".", "a folder")]) {
            let error = read(&path(name), 100).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}: {error}");
            assert!(error.to_string().contains(what), "{name}: {error}");
        }
        assert_eq!(read(&path("none"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// Between the first look and the open, a file may be replaced by a FIFO.
    #[test]
    fn opening_does_not_wait_for_a_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        fifo(&path);
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        assert!(regular(file.metadata().unwrap().file_type()).is_err());
    }

    #[test]
    fn a_file_that_grows_for_ever_is_read_to_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grows");
        let mut file = File::create(&path).unwrap();
        let (stop, stopped) = channel::<()>();
        let writer = thread::spawn(move || {
            while stopped.try_recv().is_err() {
                file.write_all(&[1; 4096]).unwrap();
                if file.metadata().unwrap().len() > 64 << 20 {
                    file.set_len(8192).unwrap();
                }
            }
        });
        while fs::metadata(&path).unwrap().len() <= 8192 {
            thread::yield_now();
        }
        assert!(read(&path, 8192).unwrap_err().to_string().contains("larger"));
        stop.send(()).unwrap();
        writer.join().unwrap();
    }

    #[test]
    fn a_path_that_hangs_is_given_up_and_tried_again_once_it_has_answered() {
        let path = Path::new("/hangs/here");
        let (release, gate) = channel::<()>();
        let brief = Duration::from_millis(10);
        let hung = in_time_of(brief, path, move || {
            // An error, too, is a release.
            let _ = gate.recv();
            Ok(())
        });
        assert_eq!(hung.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let again = in_time(path, || -> io::Result<()> { panic!("it is not tried while the first attempt lasts") });
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(in_time(Path::new("/other"), || Ok(7)).unwrap(), 7);
        release.send(()).unwrap();
        while hanging().contains(path) {
            thread::yield_now();
        }
        assert_eq!(in_time(path, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_folder_is_listed_to_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        (0..5).for_each(|n| fs::write(folder.path().join(n.to_string()), b"").unwrap());
        assert_eq!(list(folder.path(), 3).unwrap().len(), 3);
        assert_eq!(list(folder.path(), 9).unwrap().len(), 5);
    }
}
