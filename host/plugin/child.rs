//! The process in which one component is compiled, from the inside: it limits itself, reads the component from its standard input, writes
//! what became of it to its standard output, and ends. `spawn` is the other side.
//!
//! The compiler is large and works on bytes that a stranger wrote. In a process of its own it can be given a bound on memory and CPU time
//! that the operating system enforces, and whatever happens to it there happens to nobody else.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use witan_kernel::limit::COMPONENT_BYTES;

/// The first argument of a process that is to compile.
pub(crate) const WORD: &str = "compile-plugin";

/// Exit code of a process that could not begin or end its work, which says nothing about the component: say, it cannot limit itself.
pub(crate) const NOT_BEGUN: u8 = 3;

/// Exit code of Rust's programs that panic.
const PANICKED: i32 = 101;

/// Stack of the compiling thread: that of a program's main thread, whatever the limit of this one's is.
const STACK_BYTES: usize = 8 << 20;

/// What becomes of a component: one byte for the kind, eight for the length of what follows, in the order of the least significant byte
/// first, then that.
pub(crate) mod answer {
    /// Machine code follows.
    pub(crate) const IMAGE: u8 = b'i';
    /// The compiler's reason follows.
    pub(crate) const REFUSED: u8 = b'r';
    /// The compiler has reported that it has no memory.
    pub(crate) const MEMORY: u8 = b'm';
    /// The machine code is too large. Its size follows, in decimal digits.
    pub(crate) const TOO_LARGE: u8 = b'l';
    /// Bytes before what follows.
    pub(crate) const HEAD: usize = 9;
}

/// What a process may use that compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of memory that it may write to.
    pub(crate) memory: u64,
    /// Seconds of CPU time.
    pub(crate) cpu: u64,
    /// Bytes of machine code.
    pub(crate) image: u64,
}

impl Bounds {
    /// The environment of a process that compiles. The allocator of `witan` would take a gigabyte at its start, before there is a limit,
    /// and get nothing after that.
    pub(crate) const ENVIRONMENT: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");

    /// The arguments of a process with these bounds, whose parent is this process.
    pub(crate) fn arguments(&self) -> [String; 5] {
        let parent = std::process::id();
        [WORD.to_owned(), self.memory.to_string(), self.cpu.to_string(), self.image.to_string(), parent.to_string()]
    }

    fn parse(arguments: &[OsString]) -> Option<(Self, Pid)> {
        let number = |at: usize| arguments.get(at)?.to_str()?.parse::<u64>().ok();
        let bounds = Self { memory: number(0)?, cpu: number(1)?, image: number(2)? };
        Some((bounds, Pid::from_raw(i32::try_from(number(3)?).ok()?)?))
    }
}

/// Compiles a component if the process was started for that, and returns its exit code; otherwise `None`. A program whose path is given to
/// [`crate::Settings::compiler`] calls this first.
#[must_use]
pub fn compile_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let Some((bounds, parent)) = Bounds::parse(&arguments.collect::<Vec<_>>()) else {
        complain(format_args!(
            "{WORD} is started by a coordinator only; to check a plugin, upload it: witan plugin push FILE"
        ));
        return Some(ExitCode::from(2));
    };
    let done = limit(&bounds, parent)
        .map_err(|error| format!("it cannot limit itself: {error}"))
        .and_then(|()| compile(&bounds).map_err(|error| error.to_string()));
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(format_args!("{why}"));
            ExitCode::from(NOT_BEGUN)
        }
    })
}

/// Writes to the standard error, which may be closed.
fn complain(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Closes every file but the standard ones. The coordinator's own are closed already; these are what it was started with itself.
#[allow(unsafe_code)]
fn close_files() -> io::Result<()> {
    let names =
        std::fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let files = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
    // The one with which they were listed is closed already.
    let is_open = |file: &i32| std::path::Path::new("/proc/self/fd").join(file.to_string()).read_link().is_ok();
    for file in files.filter(|file| *file > 2 && is_open(file)) {
        // SAFETY: this process has one thread and has opened nothing yet, so that no value owns the file.
        unsafe { rustix::io::close(file) };
    }
    Ok(())
}

/// Limits this process, before it has read anything.
fn limit(bounds: &Bounds, parent: Pid) -> io::Result<()> {
    // Whoever started this process reads its answer. Without a reader it must not go on.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        return Err(io::Error::other("the process that started it has ended"));
    }
    close_files()?;
    // Where memory is short, the operating system ends this process rather than a coordinator. Some systems forbid to say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let at_most = |resource, soft: u64, hard: u64| {
        // A limit of this machine's that is lower stays.
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        setrlimit(resource, Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) })
    };
    at_most(Resource::Core, 0, 0)?;
    // It writes no files.
    at_most(Resource::Fsize, 0, 0)?;
    // One second more, so that the signal that says what was exceeded comes first.
    at_most(Resource::Cpu, bounds.cpu, bounds.cpu.saturating_add(1))?;
    // Memory that is written to. Wasmtime reserves a large address space, of which it uses little, so that space is not what is bounded.
    at_most(Resource::Data, bounds.memory, bounds.memory)?;
    Ok(())
}

fn compile(bounds: &Bounds) -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().take(COMPONENT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let work = move || crate::engine::compiler().and_then(|engine| engine.precompile_component(&bytes));
    let compiling = thread::Builder::new().name("witan-compile".into()).stack_size(STACK_BYTES).spawn(work)?;
    let Ok(compiled) = compiling.join() else {
        // As a panic of the main thread would end it. What it is about has been written to the standard error.
        std::process::exit(PANICKED);
    };
    let (kind, content) = match compiled {
        Ok(image) if image.len() as u64 > bounds.image => (answer::TOO_LARGE, image.len().to_string().into_bytes()),
        Ok(image) => (answer::IMAGE, image),
        Err(error) if is_memory(&error) => (answer::MEMORY, Vec::new()),
        Err(error) => (answer::REFUSED, format!("{error:#}").into_bytes()),
    };
    let mut out = io::stdout().lock();
    out.write_all(&[kind])?;
    out.write_all(&(content.len() as u64).to_le_bytes())?;
    out.write_all(&content)?;
    out.flush()
}

/// Whether the compiler failed because the operating system gave it no memory.
fn is_memory(error: &wasmtime::Error) -> bool {
    let no_memory = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error());
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(no_memory)
            || cause.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOMEM)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_travel_as_arguments() {
        let bounds = Bounds { memory: 1 << 29, cpu: 20, image: 1 << 25 };
        let arguments = bounds.arguments();
        assert_eq!(arguments[0], WORD);
        let rest: Vec<OsString> = arguments[1..].iter().map(OsString::from).collect();
        let parent = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        assert_eq!(Bounds::parse(&rest), Some((bounds, parent)));
        assert_eq!(Bounds::parse(&rest[..3]), None);
        assert_eq!(Bounds::parse(&["x".into(), "1".into(), "1".into(), "1".into()]), None);
    }
}
