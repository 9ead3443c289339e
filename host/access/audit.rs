//! The audit log of changes and refusals: JSON lines in a file that is rotated by size. A thread writes it from a bounded
//! queue: a full or slow disk loses lines, which are counted, and never delays or fails a request.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use super::config;

/// Most lines waiting for the disk: somewhat more than are recorded in a busy second.
const QUEUE: usize = 1024;
/// Most refusals recorded per second, of all clients together: refused clients must not be able to push changes out of the
/// rotated files.
const REFUSALS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("fifty is not zero");
/// Longest wait for the last lines when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// One line.
#[derive(Debug, Default, Serialize)]
pub struct Entry<'a> {
    /// Unix time, milliseconds.
    pub time_ms: u64,
    /// The id of the request, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The peer of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// The id of the credential, never its secret.
    pub credential: &'a str,
    /// The call.
    pub rpc: &'a str,
    /// The tenant that the call names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    /// The first digits of the SHA-256 of the key that the call names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<String>,
    /// "done", "begun" (a later entry records the end), "failed" or "refused".
    pub outcome: &'static str,
    /// Why it failed or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

enum Message {
    Line(String),
    /// Replies when all lines before it are written.
    Flush(SyncSender<()>),
}

/// Why the audit log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file cannot be opened.
    #[error("security.audit.file: {}: {error}; name one that can be appended to", .file.display())]
    File {
        /// The file's name.
        file: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// Its thread cannot be started.
    #[error("start the thread of the audit log: {0}")]
    Thread(std::io::Error),
}

/// The audit log. Recording never waits.
#[derive(Debug)]
pub struct Audit {
    lines: SyncSender<Message>,
    refusals: DefaultDirectRateLimiter,
    dropped: Counter,
    unrecorded: Counter,
}

impl Audit {
    /// Opens the file and starts the thread that writes it; the thread ends when this is dropped. Lost lines are counted in
    /// `dropped`, refusals beyond the recorded rate in `unrecorded`.
    ///
    /// # Errors
    /// When the file cannot be opened for appending, or the thread cannot be started.
    pub fn open(settings: &config::Audit, dropped: Counter, unrecorded: Counter) -> Result<Self, OpenError> {
        let mut pages =
            Pages::open(settings.clone()).map_err(|error| OpenError::File { file: settings.file.clone(), error })?;
        let (lines, queue) = sync_channel(QUEUE);
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(&queue, &mut pages, &lost))
            .map_err(OpenError::Thread)?;
        Ok(Self { lines, refusals: RateLimiter::direct(Quota::per_second(REFUSALS_PER_SECOND)), dropped, unrecorded })
    }

    /// Records a change.
    pub fn changed(&self, entry: &Entry<'_>) {
        let line = serde_json::to_string(entry).map(|line| line + "\n");
        let sent = line.is_ok_and(|line| self.lines.try_send(Message::Line(line)).is_ok());
        if !sent {
            self.dropped.inc();
        }
    }

    /// Records a refusal, unless there are too many.
    pub fn refused<'a>(&self, entry: impl FnOnce() -> Entry<'a>) {
        if self.refusals.check().is_ok() {
            self.changed(&entry());
        } else {
            self.unrecorded.inc();
        }
    }

    /// Blocks, for a bounded time, until all entries so far are written.
    pub fn flush(&self) {
        let until = Instant::now() + LAST;
        let (done, written) = sync_channel(1);
        while self.lines.try_send(Message::Flush(done.clone())).is_err() {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // If the disk hangs, the remaining lines are lost.
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write(queue: &Receiver<Message>, pages: &mut Pages, dropped: &Counter) {
    let mut failing = false;
    for message in queue {
        match message {
            Message::Line(line) => match pages.append(line.as_bytes()) {
                Ok(()) => failing = false,
                Err(error) => {
                    dropped.inc();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, file = %pages.settings.file.display(), "the audit log cannot be written");
                    }
                }
            },
            Message::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// The current file and the rotated ones: `audit.log`, `audit.log.1`, `audit.log.2`, ...
struct Pages {
    settings: config::Audit,
    file: Option<File>,
    bytes: u64,
}

impl Pages {
    fn open(settings: config::Audit) -> std::io::Result<Self> {
        let mut pages = Self { settings, file: None, bytes: 0 };
        pages.begin()?;
        Ok(pages)
    }

    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.settings.max_bytes {
            self.file = None;
            self.put_aside()?;
        }
        if self.file.is_none() {
            self.begin()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(line);
        match written {
            Ok(()) => self.bytes += length,
            // The state of the file is unknown, so the next line reopens it.
            Err(_) => self.file = None,
        }
        written
    }

    fn begin(&mut self) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&self.settings.file)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn put_aside(&self) -> std::io::Result<()> {
        let (file, keep) = (&self.settings.file, self.settings.keep);
        if keep == 0 {
            return std::fs::remove_file(file);
        }
        for older in (1..keep).rev() {
            let from = numbered(file, older);
            if from.exists() {
                std::fs::rename(from, numbered(file, older + 1))?;
            }
        }
        std::fs::rename(file, numbered(file, 1))
    }
}

fn numbered(file: &Path, number: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path, max_bytes: u64, keep: u32) -> config::Audit {
        config::Audit { file: folder.join("audit.log"), max_bytes, keep }
    }

    fn open(settings: &config::Audit) -> Audit {
        Audit::open(settings, Counter::default(), Counter::default()).unwrap()
    }

    #[test]
    fn entries_are_lines_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 1 << 20, 1);
        let audit = open(&settings);
        let entry = Entry {
            time_ms: 7,
            credential: "token:x",
            rpc: "/a/B",
            tenant: Some("a\n\"b"),
            outcome: "done",
            ..Entry::default()
        };
        audit.changed(&entry);
        audit.changed(&entry);
        audit.flush();
        let text = std::fs::read_to_string(&settings.file).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0]["tenant"].as_str(), lines[0]["outcome"].as_str()), (Some("a\n\"b"), Some("done")));
    }

    #[test]
    fn files_are_put_aside_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 300, 2);
        let audit = open(&settings);
        for time_ms in 0..50 {
            audit.changed(&Entry { time_ms, credential: "c", rpc: "/a/B", outcome: "done", ..Entry::default() });
        }
        audit.flush();
        let mut files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap()).collect();
        files.sort_by_key(|entry| entry.file_name());
        let names: Vec<_> = files.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2"]);
        assert!(files.iter().all(|entry| entry.metadata().unwrap().len() <= 300));
        assert!(std::fs::read_to_string(&settings.file).unwrap().contains("\"time_ms\":49"));
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 1 << 20, 1);
        let audit = open(&settings);
        for _ in 0..5000 {
            audit.refused(|| Entry { credential: "none", rpc: "/a/B", outcome: "refused", ..Entry::default() });
        }
        audit.flush();
        let written = std::fs::read_to_string(&settings.file).unwrap().lines().count() as u64;
        assert_eq!(written + audit.unrecorded.get() + audit.dropped.get(), 5000);
        assert!(written < 1000, "{written}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let settings = settings(Path::new("/nonexistent"), 1, 1);
        let error = Audit::open(&settings, Counter::default(), Counter::default()).unwrap_err().to_string();
        assert!(error.contains("security.audit.file") && error.contains("/nonexistent/audit.log"), "{error}");
    }
}
