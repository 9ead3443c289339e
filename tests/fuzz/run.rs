//! Runs one target: its corpus first, then mutated inputs until the time is up.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::mutate::{Dice, mutate};
use crate::{Seen, Target};

/// Inputs with new outcomes that are kept in memory to be mutated: enough for every kind of outcome of today's targets many times over.
const POOL: usize = 4096;
/// Longest that an input may keep a processor busy: a thousand times the slowest. On a machine with other work it may take any time.
const SLOW: Duration = Duration::from_secs(10);
/// Inputs between two looks at the clock.
const BETWEEN: u64 = 64;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to try mutated inputs, after the corpus.
    pub time: Duration,
    /// Decides which inputs are tried.
    pub seed: u64,
    /// The folder of the corpora.
    pub corpora: PathBuf,
    /// The folder for inputs that fail.
    pub found: PathBuf,
    /// Write inputs with new outcomes to the corpus.
    pub grow: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Inputs of the corpus.
    pub replayed: u64,
    /// Mutated inputs.
    pub tried: u64,
    /// Distinct outcomes.
    pub outcomes: usize,
}

/// Why a run has ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The corpus cannot be read, or the input that is tried cannot be written.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// The target has panicked, or took too long.
    #[error("{what} with {}", input.display())]
    Input {
        /// What has happened.
        what: &'static str,
        /// The input's file.
        input: PathBuf,
    },
}

/// One run of a target.
struct Run<'a> {
    target: &'a Target,
    options: &'a Options,
    /// Holds the input that is being tried, should the process end with it: a stack overflow or a failed allocation cannot be caught.
    current: File,
    path: PathBuf,
    pool: Vec<Vec<u8>>,
    seen: HashSet<Seen>,
    done: Done,
}

/// Replays the corpus and tries mutated inputs.
///
/// # Errors
/// At the first input that fails.
pub fn run(target: &Target, options: &Options) -> Result<Done, Failed> {
    let corpus = corpus(&options.corpora.join(target.name))?;
    fs::create_dir_all(&options.found).map_err(|error| Failed::Io(options.found.display().to_string(), error))?;
    let path = options.found.join(format!("{}.input", target.name));
    let current = File::create(&path).map_err(|error| Failed::Io(path.display().to_string(), error))?;
    let mut run = Run { target, options, current, path, pool: Vec::new(), seen: HashSet::new(), done: Done::default() };
    for input in &corpus {
        run.one(input)?;
        run.done.replayed += 1;
    }
    run.pool.extend(corpus);
    if run.pool.is_empty() {
        run.pool.push(Vec::new());
    }
    run.mutated()?;
    run.done.outcomes = run.seen.len();
    let _ = fs::remove_file(&run.path);
    Ok(run.done)
}

/// Runs the target on one file.
///
/// # Errors
/// The file cannot be read.
pub fn input(target: &Target, file: &Path) -> Result<Seen, Failed> {
    let bytes = fs::read(file).map_err(|error| Failed::Io(file.display().to_string(), error))?;
    Ok((target.run)(&bytes))
}

/// The files of a folder, by name; none when there is no such folder.
fn corpus(folder: &Path) -> Result<Vec<Vec<u8>>, Failed> {
    let failed = |path: &Path, error| Failed::Io(path.display().to_string(), error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(folder, error))?,
    };
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<PathBuf>, _>>()
        .map_err(|error| failed(folder, error))?;
    files.sort();
    files.iter().map(|file| fs::read(file).map_err(|error| failed(file, error))).collect()
}

/// For how long this thread has used a processor.
fn busy() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

impl Run<'_> {
    /// Tries one input. True when its outcome is new.
    fn one(&mut self, input: &[u8]) -> Result<bool, Failed> {
        let kept = self.current.set_len(input.len() as u64).and_then(|()| self.current.write_all_at(input, 0));
        kept.map_err(|error| Failed::Io(self.path.display().to_string(), error))?;
        let started = busy();
        let seen = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let seen = seen.map_err(|_| self.failed("a rule is broken"))?;
        if busy().saturating_sub(started) > SLOW {
            return Err(self.failed("too slow"));
        }
        Ok(self.seen.insert(seen))
    }

    /// Keeps the input under a name of its own.
    fn failed(&self, what: &'static str) -> Failed {
        let name = format!("{}-{:016x}", self.target.name, Seen::of(fs::read(&self.path).ok()).0);
        let input = self.options.found.join(name);
        let input = if fs::rename(&self.path, &input).is_ok() { input } else { self.path.clone() };
        Failed::Input { what, input }
    }

    fn mutated(&mut self) -> Result<(), Failed> {
        let mut dice = Dice::new(self.options.seed ^ Seen::of(self.target.name).0);
        let started = Instant::now();
        while !self.done.tried.is_multiple_of(BETWEEN) || started.elapsed() < self.options.time {
            let mut input = self.pool[dice.below(self.pool.len())].clone();
            let other = &self.pool[dice.below(self.pool.len())];
            mutate(&mut input, other, self.target.words, &mut dice);
            self.done.tried += 1;
            if self.one(&input)? && self.pool.len() < POOL {
                self.keep(input)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, input: Vec<u8>) -> Result<(), Failed> {
        if self.options.grow {
            let file = self.options.corpora.join(self.target.name).join(format!("{:016x}", Seen::of(&input).0));
            let folder = file.parent().unwrap_or(&self.options.corpora);
            let written = fs::create_dir_all(folder).and_then(|()| fs::write(&file, &input));
            written.map_err(|error| Failed::Io(file.display().to_string(), error))?;
        }
        self.pool.push(input);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options {
        let found = std::env::temp_dir().join(format!("witan-fuzz-{name}-{}", std::process::id()));
        Options { time: Duration::from_millis(200), seed: 7, corpora: found.join("corpus"), found, grow: false }
    }

    #[test]
    fn a_broken_rule_is_found_and_its_input_kept() {
        fn breaks(input: &[u8]) -> Seen {
            assert!(!input.windows(2).any(|pair| pair == b"ab"), "ab");
            Seen::of(input.first())
        }
        let options = options("breaks");
        let target = Target { name: "breaks", run: breaks, words: &[b"a", b"b"] };
        let failed = run(&target, &options).unwrap_err();
        let Failed::Input { input: file, .. } = failed else { panic!("{failed}") };
        assert!(fs::read(&file).unwrap().windows(2).any(|pair| pair == b"ab"));
        assert!(catch_unwind(|| input(&target, &file)).is_err());
        fs::remove_dir_all(options.found).unwrap();
    }

    #[test]
    fn the_corpus_is_replayed_and_grows() {
        fn length(input: &[u8]) -> Seen {
            Seen::of(input.len().min(20))
        }
        let options = Options { grow: true, ..options("grows") };
        let target = Target { name: "length", run: length, words: &[] };
        let first = run(&target, &options).unwrap();
        assert!(first.replayed == 0 && first.tried > 0 && first.outcomes > 3, "{first:?}");
        let second = run(&target, &Options { time: Duration::ZERO, ..options.clone() }).unwrap();
        assert!(second.replayed > 3 && second.tried == 0, "{second:?}");
        fs::remove_dir_all(options.found).unwrap();
    }
}
