//! The audit log of changes and refusals: JSON lines in a file that is rotated by size. A thread writes it from bounded queues.
//!
//! What did happen, or may have happened, is never lost to a slow or full disk: a change takes a place in the queue before it is made, and
//! is refused if there is none. What was refused, or has failed and changed nothing, can be provoked in any number. It is written up to a
//! rate, and beyond that it is counted; it never delays or fails a request.

mod sieve;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config;
use sieve::{Rate, Sieve};

/// Most changes whose line waits for the disk, or that are under way: four times as many as the catalog admits at a time.
const CHANGES: usize = 1024;
/// Most lines about what did not happen that wait for the disk: somewhat more than are recorded in a busy second.
const QUEUE: usize = 1024;
/// Refusals that are recorded, of all clients together.
const REFUSALS: Rate = Rate { burst: 50, per_second: 50 };
/// Calls of one credential's tenant that failed and changed nothing. A flood of them takes 20 MB a day, less than a file.
const FAILURES: Rate = Rate { burst: 20, per_second: 1 };
/// How often the number of entries that were left out is written.
const SUMMARY: Duration = Duration::from_secs(10);
/// How long a change waits for a place: the disk has been slow for as long as it needs for a thousand lines, or cannot be written.
const PLACE: Duration = Duration::from_secs(5);
/// How long a line about a change waits before it is tried again.
const AGAIN: Duration = Duration::from_millis(500);
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
    /// The id of the credential, never its secret; of entries that were left out, whose they were.
    pub credential: &'a str,
    /// The call; nothing for entries that were left out.
    pub rpc: &'a str,
    /// The tenant that the call names, or whose rate it exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<&'a str>,
    /// The first digits of the SHA-256 of the key that the call names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<String>,
    /// "done", "begun" (a later entry records the end), "abandoned", "failed" or "refused".
    pub outcome: &'static str,
    /// Why it failed or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// How many entries like this one were left out since the last one, because there were too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

enum Message {
    /// A change: written sooner or later.
    Change(String, Place),
    /// Lost if the disk cannot be written.
    Other(String, OwnedSemaphorePermit),
    /// Replies when all lines before it are written.
    Flush(SyncSender<()>),
}

/// A place in the queue for the line of a change, taken before the change is made. Given back when the line is written.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "it is given back when it is dropped")] OwnedSemaphorePermit);

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

/// What the audit log counts.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Lines lost: of what did not happen, since the queue was full or the file could not be written; of changes, when the process ended
    /// before they could be written.
    pub dropped: Counter,
    /// Attempts to write that failed. A line about a change is tried again.
    pub write_failures: Counter,
    /// Refusals that were left out.
    pub refusals: Counter,
    /// Failed calls that were left out.
    pub failures: Counter,
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    lines: Sender<Message>,
    changes: Arc<Semaphore>,
    others: Arc<Semaphore>,
    sieves: Arc<Sieves>,
    counts: Counts,
    /// Turns true when nobody records anything any more.
    closed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Sieves {
    refusals: Sieve,
    failures: Sieve,
}

impl Audit {
    /// Opens the file and starts the thread that writes it; the thread ends when this is dropped.
    ///
    /// # Errors
    /// When the file cannot be opened for appending, or the thread cannot be started.
    pub fn open(settings: &config::Audit, counts: Counts) -> Result<Self, OpenError> {
        let pages =
            Pages::open(settings.clone()).map_err(|error| OpenError::File { file: settings.file.clone(), error })?;
        let (lines, queue) = channel();
        let sieves = Arc::new(Sieves { refusals: Sieve::new(REFUSALS), failures: Sieve::new(FAILURES) });
        let closed = Arc::<AtomicBool>::default();
        let mut writer = Writer {
            pages,
            counts: counts.clone(),
            sieves: Arc::clone(&sieves),
            closed: Arc::clone(&closed),
            failing: false,
            summarized: Instant::now(),
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(OpenError::Thread)?;
        let (changes, others) = (Arc::new(Semaphore::new(CHANGES)), Arc::new(Semaphore::new(QUEUE)));
        Ok(Self { lines, changes, others, sieves, counts, closed })
    }

    /// A place for the line of a change, for which it waits a few seconds; `None`: the change must not be made, since nobody could say how
    /// it was recorded.
    pub async fn place(&self) -> Option<Place> {
        let taken = tokio::time::timeout(PLACE, Arc::clone(&self.changes).acquire_owned()).await;
        taken.ok().and_then(Result::ok).map(Place)
    }

    /// Records a change that was made, or may have been.
    pub fn changed(&self, place: Place, entry: &Entry<'_>) {
        // The queue is as long as there are places, and its thread ends after the last sender.
        let _ = self.lines.send(Message::Change(line(entry), place));
    }

    /// Records a refusal, unless there are too many.
    pub fn refused<'a>(&self, entry: impl FnOnce() -> Entry<'a>) {
        match self.sieves.refusals.passes("", Instant::now()) {
            Some(left_out) => self.other(&Entry { left_out: some(left_out), ..entry() }),
            None => _ = self.counts.refusals.inc(),
        }
    }

    /// Records a call of this source that has failed and changed nothing, unless there are too many.
    pub fn failed<'a>(&self, source: &str, entry: impl FnOnce() -> Entry<'a>) {
        match self.sieves.failures.passes(source, Instant::now()) {
            Some(left_out) => self.other(&Entry { left_out: some(left_out), ..entry() }),
            None => _ = self.counts.failures.inc(),
        }
    }

    fn other(&self, entry: &Entry<'_>) {
        let sent = Arc::clone(&self.others).try_acquire_owned().is_ok_and(|place| {
            let message = Message::Other(line(entry), place);
            self.lines.send(message).is_ok()
        });
        if !sent {
            self.counts.dropped.inc();
        }
    }

    /// Blocks, for a bounded time, until all entries so far are written.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.send(Message::Flush(done)).is_ok() && written.recv_timeout(LAST).is_err() {
            let lost = CHANGES.saturating_sub(self.changes.available_permits());
            self.counts.dropped.inc_by(lost as u64);
            tracing::error!(lines = lost, "the audit log cannot be written; changes are not on record");
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

fn some(left_out: u64) -> Option<u64> {
    (left_out > 0).then_some(left_out)
}

/// An entry as it is written. Nothing in it can fail to become JSON.
fn line(entry: &Entry<'_>) -> String {
    serde_json::to_string(entry).unwrap_or_default() + "\n"
}

/// What the thread works with.
struct Writer {
    pages: Pages,
    counts: Counts,
    sieves: Arc<Sieves>,
    closed: Arc<AtomicBool>,
    failing: bool,
    /// When the number of entries that were left out was last written.
    summarized: Instant,
}

impl Writer {
    fn run(&mut self, queue: &Receiver<Message>) {
        loop {
            match queue.recv_timeout(SUMMARY) {
                Ok(Message::Change(line, _place)) => self.insist(&line),
                Ok(Message::Other(line, _place)) => self.try_once(&line),
                Ok(Message::Flush(done)) => {
                    self.summarize();
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.summarized.elapsed() >= SUMMARY {
                self.summarize();
            }
        }
    }

    /// Writes the line of a change, as often as it takes.
    fn insist(&mut self, line: &str) {
        while !self.write(line) {
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn try_once(&mut self, line: &str) {
        if !self.write(line) {
            self.counts.dropped.inc();
        }
    }

    fn write(&mut self, line: &str) -> bool {
        match self.pages.append(line.as_bytes()) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.counts.write_failures.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, file = %self.pages.settings.file.display(), "the audit log cannot be written");
                }
            }
        }
        !self.failing
    }

    /// Writes how many entries were left out, which the next one would say, if there was another.
    fn summarize(&mut self) {
        self.summarized = Instant::now();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let Sieves { refusals, failures } = &*self.sieves;
        let left_out = [("refused", refusals.left_out()), ("failed", failures.left_out())];
        for (outcome, sources) in left_out {
            for (credential, left_out) in sources {
                let entry =
                    Entry { time_ms, credential: &credential, outcome, left_out: Some(left_out), ..Entry::default() };
                self.try_once(&line(&entry));
            }
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
            // The next line begins where this one did, so that none is torn. If that fails too, the state of the file is unknown.
            Err(_) => {
                let _ = file.set_len(self.bytes);
                self.file = None;
            }
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
        Audit::open(settings, Counts::default()).unwrap()
    }

    fn changed(audit: &Audit, entry: &Entry<'_>) {
        let place = Arc::clone(&audit.changes).try_acquire_owned().expect("a place");
        audit.changed(Place(place), entry);
    }

    fn read(settings: &config::Audit) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&settings.file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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
        changed(&audit, &entry);
        changed(&audit, &entry);
        audit.flush();
        let lines = read(&settings);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0]["tenant"].as_str(), lines[0]["outcome"].as_str()), (Some("a\n\"b"), Some("done")));
    }

    #[test]
    fn files_are_put_aside_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 300, 2);
        let audit = open(&settings);
        for time_ms in 0..50 {
            changed(&audit, &Entry { time_ms, credential: "c", rpc: "/a/B", outcome: "done", ..Entry::default() });
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
        let lines = read(&settings);
        let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
        let written = lines.iter().filter(|line| line["rpc"] == "/a/B").count() as u64;
        assert_eq!(written + left_out, 5000, "the number of those left out is on record");
        assert_eq!(audit.counts.refusals.get(), left_out);
        assert!(written < 1000 && lines.len() < 1000, "{written}");
    }

    #[test]
    fn failures_of_one_tenant_leave_room_for_those_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 1 << 20, 1);
        let audit = open(&settings);
        let failed = |tenant| Entry {
            credential: "c",
            rpc: "/a/B",
            tenant: Some(tenant),
            outcome: "failed",
            ..Entry::default()
        };
        for _ in 0..5000 {
            audit.failed("busy", || failed("busy"));
        }
        audit.failed("quiet", || failed("quiet"));
        audit.flush();
        let lines = read(&settings);
        let of = |tenant| lines.iter().filter(|line| line["tenant"] == tenant).count() as u64;
        let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
        assert_eq!((of("busy") + left_out, of("quiet")), (5000, 1));
        assert!(of("busy") < 100, "{}", of("busy"));
        assert_eq!((audit.counts.failures.get(), audit.counts.refusals.get()), (left_out, 0));
    }

    /// A folder in place of the file: it can neither be opened nor written, until it is removed.
    #[tokio::test]
    async fn changes_wait_for_a_disk_that_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), 100, 1);
        let audit = open(&settings);
        let entry = Entry { credential: "c", rpc: "/a/B", outcome: "done", ..Entry::default() };
        // The next line goes into a new file, whose name is taken by then.
        changed(&audit, &entry);
        audit.flush();
        std::fs::create_dir_all(folder.path().join("audit.log.1/taken")).unwrap();
        let mut made = 1;
        while let Ok(place) = Arc::clone(&audit.changes).try_acquire_owned() {
            audit.changed(Place(place), &entry);
            made += 1;
        }
        for _ in 0..3 * QUEUE {
            audit.other(&entry);
        }
        assert!(made > CHANGES, "other lines do not take the places of changes");
        while audit.counts.write_failures.get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::fs::remove_dir_all(folder.path().join("audit.log.1")).unwrap();
        // All places are given back when all lines are written.
        let all = Arc::clone(&audit.changes).acquire_many_owned(CHANGES as u32);
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("the lines are written").map(drop).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let settings = settings(Path::new("/nonexistent"), 1, 1);
        let error = Audit::open(&settings, Counts::default()).unwrap_err().to_string();
        assert!(error.contains("security.audit.file") && error.contains("/nonexistent/audit.log"), "{error}");
    }
}
