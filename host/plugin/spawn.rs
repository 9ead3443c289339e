//! The process in which one component is compiled, from the outside: started from this program's own file, with nothing but three pipes,
//! and killed when it takes too long. `child` is the other side.
//!
//! What it answers is believed as the answer of our own program over a pipe that nobody else has. It is not authenticated beyond that: it
//! never was in a file. What is kept of it on disk is, by `images`.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::child::{Bounds, NOT_BEGUN, answer};
use crate::fault::shorten;
use crate::limit::ClassLimits;
use crate::uncompiled::{CompileError, NotNow, Uncompiled};

/// Most that is kept of what a compiling process writes to its standard error: a panic's message.
const SAYS_BYTES: u64 = 4 << 10;

/// What Rust writes when an allocation fails, before the process aborts.
const NO_MEMORY: &str = "memory allocation of ";

impl Bounds {
    fn of(limits: &ClassLimits) -> Self {
        // The operating system counts whole seconds.
        let cpu = limits.compile.as_secs() + u64::from(limits.compile.subsec_nanos() > 0);
        Self { memory: limits.compile_memory as u64, cpu: cpu.max(1), image: limits.image as u64 }
    }
}

/// A process, which does not outlive this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Neither fails unless it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Compiles a component within the limits of its class, in a process that runs `program`. Blocks until that has ended, `wall` at most.
pub(crate) fn compile(
    program: &Path,
    bytes: &[u8],
    limits: &ClassLimits,
    wall: Duration,
) -> Result<Vec<u8>, Uncompiled> {
    let bounds = Bounds::of(limits);
    let mut command = Command::new(program);
    command.arg0("witan").args(bounds.arguments());
    // The environment may hold tokens and passwords. All other files of this process are closed when another program begins.
    let (name, value) = Bounds::ENVIRONMENT;
    command.env_clear().env(name, value).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A signal from a terminal is for the coordinator, which ends this process when it ends.
    command.process_group(0);
    let mut running = Running(command.spawn().map_err(NotNow::process)?);
    let pipes = (running.0.stdin.take(), running.0.stdout.take(), running.0.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(NotNow::process(io::Error::other("it has no pipes")).into());
    };
    let most = bounds.image + answer::HEAD as u64 + 1;
    let (answered, says) = thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        thread("witan-compile-in").spawn_scoped(scope, move || {
            // A process that ends early does not read on; its answer says why.
            let _ = stdin.write_all(bytes);
        })?;
        let errors = thread("witan-compile-err").spawn_scoped(scope, move || {
            let mut said = Vec::new();
            let _ = stderr.take(SAYS_BYTES).read_to_end(&mut said);
            said
        })?;
        thread("witan-compile-out").spawn_scoped(scope, move || {
            let mut answer = Vec::new();
            let read = stdout.take(most).read_to_end(&mut answer);
            // If it was too late, nobody waits for it.
            let _ = sender.send(read.map(|_| answer));
        })?;
        let ended = match receiver.recv_timeout(wall) {
            Ok(answer) => Ended::of(answer?, &mut running)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ended::TooLate,
        };
        drop(running);
        Ok((ended, errors.join().unwrap_or_default()))
    })
    .map_err(NotNow::process)?;
    verdict(answered, &String::from_utf8_lossy(&says), limits, wall)
}

/// How a process has ended.
#[derive(Debug)]
enum Ended {
    /// With a whole answer of this kind.
    Answered(u8, Vec<u8>),
    /// Without one.
    Silently(ExitStatus),
    TooLate,
}

impl Ended {
    /// For a process that has closed its standard output.
    fn of(mut answer: Vec<u8>, running: &mut Running) -> io::Result<Self> {
        let whole = answer.first_chunk::<{ answer::HEAD }>().is_some_and(|head| {
            let [_, length @ ..] = *head;
            u64::from_le_bytes(length) == (answer.len() - answer::HEAD) as u64
        });
        if !whole {
            return running.0.wait().map(Self::Silently);
        }
        let content = answer.split_off(answer::HEAD);
        Ok(Self::Answered(answer[0], content))
    }
}

fn verdict(ended: Ended, says: &str, limits: &ClassLimits, wall: Duration) -> Result<Vec<u8>, Uncompiled> {
    let memory = || CompileError::Memory(limits.compile_memory);
    let text = |bytes: &[u8]| shorten(&String::from_utf8_lossy(bytes));
    let refused: CompileError = match ended {
        Ended::Answered(answer::IMAGE, image) if image.len() <= limits.image => return Ok(image),
        Ended::Answered(answer::TOO_LARGE, size) => CompileError::Image { bytes: text(&size), limit: limits.image },
        Ended::Answered(answer::MEMORY, _) => memory(),
        Ended::Answered(answer::REFUSED, why) => CompileError::Compiler(text(&why)),
        Ended::Answered(..) => CompileError::Crashed("an unreadable answer".to_owned()),
        Ended::TooLate => return Err(NotNow::WallTime(wall).into()),
        Ended::Silently(status) => return Err(silent(status, says, limits, memory())),
    };
    Err(refused.into())
}

/// What it means that a process has ended without an answer.
fn silent(status: ExitStatus, says: &str, limits: &ClassLimits, memory: CompileError) -> Uncompiled {
    let signal = status.signal();
    let is = |signals: &[Signal]| signals.iter().any(|one| signal == Some(one.as_raw()));
    if says.contains(NO_MEMORY) {
        return memory.into();
    }
    if is(&[Signal::XCPU]) {
        return CompileError::CpuTime(limits.compile).into();
    }
    let says = shorten(says.trim());
    if status.code() == Some(i32::from(NOT_BEGUN)) {
        return NotNow::Process(says).into();
    }
    // Somebody else has ended it: a person, or an operating system that is out of memory, as it may be for reasons of its own.
    if is(&[Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT]) {
        return NotNow::Killed.into();
    }
    tracing::warn!(%status, says, "the process that compiled a plugin ended without an answer");
    CompileError::Crashed(status.to_string()).into()
}

impl NotNow {
    fn process(error: io::Error) -> Self {
        Self::Process(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limits;

    fn limits() -> ClassLimits {
        Limits::default().standard
    }

    const WALL: Duration = Duration::from_secs(60);

    /// How a shell that does this ends.
    fn ended(script: &str) -> (ExitStatus, Vec<u8>) {
        let output = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
        (output.status, output.stderr)
    }

    #[test]
    fn a_silent_end_is_the_components_fault_only_if_it_is_certain() {
        let limits = limits();
        let meant = |script: &str| {
            let (status, says) = ended(script);
            silent(status, &String::from_utf8_lossy(&says), &limits, CompileError::Memory(1))
        };
        let refused = |script| match meant(script) {
            Uncompiled::Refused(why) => why,
            Uncompiled::NotNow(why) => panic!("{script}: {why}"),
        };
        assert_eq!(refused("echo 'memory allocation of 64 bytes failed' >&2; kill -ABRT $$"), CompileError::Memory(1));
        assert_eq!(refused("kill -XCPU $$"), CompileError::CpuTime(limits.compile));
        assert!(matches!(refused("kill -SEGV $$"), CompileError::Crashed(_)));
        assert!(matches!(refused("exit 101"), CompileError::Crashed(_)));
        assert_eq!(meant("kill -KILL $$"), NotNow::Killed.into());
        assert_eq!(meant("kill -TERM $$"), NotNow::Killed.into());
        assert_eq!(meant("echo no limits >&2; exit 3"), NotNow::Process("no limits".into()).into());
    }

    #[test]
    fn where_no_process_can_be_started_nothing_is_said_about_the_component() {
        let missing = compile(Path::new("/nowhere/witan"), b"", &limits(), WALL).unwrap_err();
        assert!(
            matches!(&missing, Uncompiled::NotNow(NotNow::Process(why)) if why.contains("No such file")),
            "{missing}"
        );
        let other = compile(Path::new("/bin/false"), b"", &limits(), WALL).unwrap_err();
        assert!(matches!(other, Uncompiled::Refused(CompileError::Crashed(_))), "{other}");
    }

    #[test]
    fn a_process_that_does_not_end_is_killed() {
        let wall = Duration::from_millis(50);
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("sleeps");
        // Written by another process: a file that this one has open for writing cannot be run, nor while a child of another test has it.
        let script = format!("printf '#!/bin/sh\\nexec sleep 600\\n' > {0}; chmod 700 {0}", program.display());
        assert!(ended(&script).0.success());
        // More than a pipe holds, which it does not read.
        let late = compile(&program, &vec![0; 1 << 20], &limits(), wall).unwrap_err();
        assert_eq!(late, NotNow::WallTime(wall).into());
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let mut running = Running(Command::new("/bin/true").spawn().unwrap());
        let whole = [&[answer::IMAGE][..], &3_u64.to_le_bytes(), b"abc"].concat();
        let image = Ended::of(whole.clone(), &mut running).unwrap();
        assert!(matches!(image, Ended::Answered(answer::IMAGE, content) if content == b"abc"));
        for cut in [&whole[..11], &whole[..5], b""] {
            assert!(matches!(Ended::of(cut.to_vec(), &mut running), Ok(Ended::Silently(_))));
        }
        let small = ClassLimits { image: 2, ..limits() };
        assert!(verdict(Ended::Answered(answer::IMAGE, b"abc".to_vec()), "", &small, WALL).is_err());
    }
}
