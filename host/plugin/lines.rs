//! The lines that plugins have logged last, for those who may see the binding: the operator's log is not theirs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use witan_kernel::hook::AnsweredBy;
use witan_kernel::name::TenantId;
use witan_kernel::port::Slot;
use witan_kernel::sync::lock;

use crate::limit;

/// How grave a plugin says that something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// For its author.
    Debug,
    /// For whoever wants to know.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Something has failed.
    Error,
}

impl Severity {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A line that a plugin has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When: Unix time in milliseconds.
    pub at_ms: u64,
    /// How grave it is.
    pub severity: Severity,
    /// The version that has logged it, also one that is only tried.
    pub by: AnsweredBy,
    /// The tenant that it served; `None`: none yet.
    pub tenant: Option<TenantId>,
    /// The line, shortened.
    pub text: String,
    /// Lines before it that were dropped, because there were too many within a second.
    pub dropped: u64,
}

/// Bytes that a line takes beside its text, about.
const LINE_BYTES: usize = 128;

impl Line {
    fn bytes(&self) -> usize {
        self.text.len() + LINE_BYTES
    }
}

/// The lines of all slots.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    slots: Mutex<BTreeMap<Slot, Weak<Lines>>>,
    /// Bytes of all lines together.
    bytes: Arc<AtomicUsize>,
}

impl Logs {
    /// The lines of a slot. All of its versions share them, so that those of a version that was swapped out are there for as long as
    /// another one is.
    pub(crate) fn of(&self, slot: &Slot) -> Arc<Lines> {
        let mut slots = lock(&self.slots);
        if let Some(lines) = slots.get(slot).and_then(Weak::upgrade) {
            return lines;
        }
        slots.retain(|_, lines| lines.strong_count() > 0);
        let lines = Arc::new(Lines { all: self.bytes.clone(), kept: Mutex::default(), last: watch::Sender::new(0) });
        slots.insert(slot.clone(), Arc::downgrade(&lines));
        lines
    }
}

/// The last lines of one slot.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Bytes of the lines of all slots.
    all: Arc<AtomicUsize>,
    kept: Mutex<Kept>,
    /// Lines so far, for those who wait for the next one.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    /// Lines that are no longer kept: the number of the first that is.
    gone: u64,
    bytes: usize,
    /// Dropped since the last line.
    dropped: u64,
}

impl Lines {
    /// Keeps a line. Of a slot whose lines take too much, or of all slots if they do together, the oldest go.
    pub(crate) fn push(&self, by: AnsweredBy, tenant: Option<TenantId>, severity: Severity, text: String) {
        let mut kept = lock(&self.kept);
        let dropped = std::mem::take(&mut kept.dropped);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line { at_ms: now.as_millis() as u64, severity, by, tenant, text, dropped };
        kept.bytes += line.bytes();
        self.all.fetch_add(line.bytes(), Relaxed);
        kept.lines.push_back(line);
        let is_too_much = |kept: &Kept| {
            kept.lines.len() > limit::LOG_LINES
                || kept.bytes > limit::LOG_BYTES
                || self.all.load(Relaxed) > limit::LOGS_BYTES
        };
        while kept.lines.len() > 1
            && is_too_much(&kept)
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.gone += 1;
            kept.bytes -= oldest.bytes();
            self.all.fetch_sub(oldest.bytes(), Relaxed);
        }
        let so_far = kept.gone + kept.lines.len() as u64;
        drop(kept);
        self.last.send_replace(so_far);
    }

    /// Counts a line that is not kept.
    pub(crate) fn dropped(&self) {
        lock(&self.kept).dropped += 1;
    }

    /// Lines from number `from` on, at most as many as are handed over at once, and how many have gone before they could be read.
    fn since(&self, from: u64) -> (Vec<Line>, u64) {
        let kept = lock(&self.kept);
        let missed = kept.gone.saturating_sub(from);
        let skip = usize::try_from((from + missed).saturating_sub(kept.gone)).unwrap_or(usize::MAX);
        (kept.lines.iter().skip(skip).take(limit::LOG_BATCH).cloned().collect(), missed)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.all.fetch_sub(lock(&self.kept).bytes, Relaxed);
    }
}

/// Lines that follow each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The lines.
    pub lines: Vec<Line>,
    /// Lines before them that the reader has missed, because it was too slow.
    pub missed: u64,
}

/// A reader of a slot's lines. Nothing is kept for it: what it does not read in time it misses.
#[derive(Debug)]
pub struct Tail {
    lines: Arc<Lines>,
    last: watch::Receiver<u64>,
    /// The number of the next line.
    next: u64,
}

impl Tail {
    /// A reader that begins with the oldest line that is kept: those that are gone were missed by nobody.
    pub(crate) fn of(lines: Arc<Lines>) -> Self {
        let next = lock(&lines.kept).gone;
        Self { last: lines.last.subscribe(), lines, next }
    }

    /// The next lines that there are; empty if it has read all of them.
    pub fn read(&mut self) -> Batch {
        let (lines, missed) = self.lines.since(self.next);
        self.next += missed + lines.len() as u64;
        Batch { lines, missed }
    }

    /// The next lines, when there are some.
    pub async fn follow(&mut self) -> Batch {
        loop {
            self.last.mark_unchanged();
            let batch = self.read();
            if !batch.lines.is_empty() {
                return batch;
            }
            // The sender lives as long as the lines, which this reader keeps.
            _ = self.last.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use witan_kernel::hook::Hook;

    fn slot(tenant: &str) -> Slot {
        Slot { tenant: Some(TenantId::new(tenant).unwrap()), hook: Hook::ConflictResolver }
    }

    fn tail(lines: &Arc<Lines>) -> Tail {
        Tail { lines: lines.clone(), last: lines.last.subscribe(), next: 0 }
    }

    fn push(lines: &Lines, text: impl Into<String>) {
        lines.push("p@1".into(), None, Severity::Info, text.into());
    }

    fn texts(batch: &Batch) -> Vec<&str> {
        batch.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_last_lines_are_kept_and_a_slow_reader_knows_what_it_has_missed() {
        let logs = Logs::default();
        let lines = logs.of(&slot("a"));
        let mut reader = tail(&lines);
        push(&lines, "one");
        assert_eq!(texts(&reader.read()), ["one"]);
        lines.dropped();
        lines.dropped();
        for number in 0..limit::LOG_LINES + 7 {
            push(&lines, number.to_string());
        }
        let batch = reader.read();
        assert_eq!((batch.missed, batch.lines.len(), texts(&batch)[0]), (7, limit::LOG_BATCH, "7"));
        let mut read = batch.lines.len();
        while let Batch { lines, missed: 0 } = reader.read()
            && !lines.is_empty()
        {
            read += lines.len();
        }
        assert_eq!(read, limit::LOG_LINES);
        let mut late = tail(&lines);
        assert_eq!(late.read().missed, 8, "with the first one");
        assert!(lock(&lines.kept).lines.iter().all(|line| line.dropped == 0), "the line that said so has gone");
    }

    #[test]
    fn bytes_are_bounded_for_each_slot_and_for_all() {
        let logs = Logs::default();
        let large = "x".repeat(limit::TEXT_BYTES);
        let all: Vec<_> = (0..1000).map(|number| logs.of(&slot(&format!("t{number}")))).collect();
        for lines in &all {
            (0..limit::LOG_LINES).for_each(|_| push(lines, large.clone()));
            assert!(lock(&lines.kept).bytes <= limit::LOG_BYTES);
        }
        let most = limit::LOGS_BYTES + all.len() * (limit::TEXT_BYTES + LINE_BYTES);
        assert!(logs.bytes.load(Relaxed) <= most, "{}", logs.bytes.load(Relaxed));
        assert!(all.iter().all(|lines| !lock(&lines.kept).lines.is_empty()), "each has its last one");
        drop(all);
        assert_eq!(logs.bytes.load(Relaxed), 0);
        logs.of(&slot("another"));
        assert_eq!(lock(&logs.slots).len(), 1, "slots without lines are forgotten");
    }

    #[test]
    fn versions_of_a_slot_share_its_lines() {
        let logs = Logs::default();
        let (old, new) = (logs.of(&slot("a")), logs.of(&slot("a")));
        push(&old, "old");
        push(&new, "new");
        drop(old);
        assert_eq!(texts(&tail(&new).read()), ["old", "new"]);
        assert_eq!(tail(&logs.of(&slot("b"))).read(), Batch::default(), "another's");
    }

    #[tokio::test]
    async fn who_follows_waits_for_the_next_line() {
        let logs = Logs::default();
        let lines = logs.of(&slot("a"));
        let mut reader = tail(&lines);
        push(&lines, "one");
        assert_eq!(texts(&reader.follow().await), ["one"]);
        let follows = tokio::spawn(async move { reader.follow().await });
        tokio::task::yield_now().await;
        push(&lines, "two");
        assert_eq!(texts(&follows.await.unwrap()), ["two"]);
    }
}
