//! Log lines on their way to standard error. Whoever reads that may stop reading: then a write to it blocks for ever, and nothing that
//! serves may wait for it. So a thread writes the lines, from a bounded queue; lines that find no room are lost, and counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;
use witan_kernel::sync::lock;

/// Most bytes of lines that wait: some thousand lines, more than a busy process logs while its reader restarts.
const WAITING_BYTES: usize = 1 << 20;
/// Longest wait for the last lines when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// Lines of this process's log that were lost.
pub(super) static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Lines that wait for standard error. Clones share them.
#[derive(Debug, Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified when everything has been written.
    emptied: Condvar,
    lost: Counter,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the waiting lines.
    bytes: usize,
    /// The thread is writing a line.
    writing: bool,
    /// Lines lost that no line has reported yet.
    unreported: u64,
}

impl Lines {
    /// Starts the thread that writes lines to `out`; those that find no room are counted in `lost`. If no thread can be started, all are
    /// lost.
    pub(super) fn to(out: impl Write + Send + 'static, lost: Counter) -> Self {
        let lines =
            Self(Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new(), lost }));
        let shared = Arc::clone(&lines.0);
        let thread = std::thread::Builder::new().name("log".to_owned());
        // Where no thread can be started, the process does not get far.
        let _ = thread.spawn(move || shared.write_to(out));
        lines
    }

    /// Blocks, for a bounded time, until all lines so far are written.
    pub(crate) fn flush(&self) {
        let until = Instant::now() + LAST;
        let mut queue = lock(&self.0.queue);
        while queue.writing || !queue.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = match self.0.emptied.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Shared {
    fn push(&self, line: &[u8]) {
        let mut queue = lock(&self.queue);
        if queue.bytes.saturating_add(line.len()) > WAITING_BYTES {
            queue.unreported += 1;
            self.lost.inc();
            return;
        }
        queue.bytes += line.len();
        queue.waiting.push_back(line.to_vec());
        self.filled.notify_one();
    }

    /// Never ends.
    fn write_to(&self, mut out: impl Write) {
        loop {
            let (line, lost) = self.next();
            // There is nobody to tell that standard error cannot be written.
            let _ = out.write_all(&line);
            if lost > 0 {
                tracing::warn!(lost, "log lines were lost: standard error was not read in time");
            }
        }
    }

    /// The next line, and the number of lines lost before it that are to be reported now.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut queue = lock(&self.queue);
        queue.writing = false;
        loop {
            if let Some(line) = queue.waiting.pop_front() {
                queue.bytes -= line.len();
                queue.writing = true;
                // Reported once it is written again, when there is room for the report.
                let written_again = queue.bytes < WAITING_BYTES / 2;
                let lost = if written_again { std::mem::take(&mut queue.unreported) } else { 0 };
                return (line, lost);
            }
            self.emptied.notify_all();
            queue = wait(&self.filled, queue);
        }
    }
}

fn wait<'a>(filled: &Condvar, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    filled.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Lines {
    /// The formatter writes each line with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that reads a line only when it is let.
    struct Slow {
        lets: Receiver<()>,
        read: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.lets.recv();
            let _ = self.read.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let ((lets, gate), (read, lines_read), lost) = (channel(), channel(), Counter::default());
        let lines = Lines::to(Slow { lets: gate, read }, lost.clone());
        let line = vec![b'x'; WAITING_BYTES / 8];
        let began = Instant::now();
        for _ in 0..20 {
            lines.clone().write_all(&line).unwrap();
        }
        // The thread has taken one at most.
        let losses = lost.get();
        assert!((11..=12).contains(&losses), "{losses} lines were lost");
        lines.flush();
        assert!(began.elapsed() >= LAST, "it waits, but not for ever");
        drop(lets);
        for _ in losses..20 {
            assert_eq!(lines_read.recv().unwrap(), line);
        }
        lines.flush();
        assert_eq!(lost.get(), losses, "there is room again");
    }
}
