//! Compiles components to machine code: once per digest, each in a process of its own, and cached on disk, so that a restart compiles
//! nothing. What a process could not compile is remembered too.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use wasmtime::Engine;
use wasmtime::component::Component;
use witan_kernel::class::Class;

use crate::digest::Digest;
use crate::error::HostError;
use crate::images::Images;
use crate::limit::{self, ClassLimits, Limits};
use crate::refusals::Refusals;
use crate::spawn;
use crate::turn::Turns;
use crate::uncompiled::{CompileError, NotNow, Uncompiled};
use witan_kernel::sync::lock;

/// Loads an image that [`Compiler`] made: compiled by this program in another process, or authenticated by [`Images`].
#[allow(unsafe_code)]
pub(crate) fn load(engine: &Engine, image: &[u8]) -> Result<Component, wasmtime::Error> {
    // SAFETY: an image is machine code that will be run. It comes from `precompile_component` of this program, over a pipe that nobody
    // else has, or from a file that only a holder of this host's key can have written, compiled by an engine with the same
    // compatibility hash.
    unsafe { Component::deserialize(engine, image) }
}

/// What became of compilations since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compilations {
    /// Components that were compiled.
    pub compiled: u64,
    /// Components that were refused: they took too much, or the compiler did not accept them.
    pub refused: u64,
    /// Compilations that say nothing about their component: no process could be started, or it did not end in time.
    pub not_now: u64,
    /// Bytes of cached machine code on disk.
    pub image_bytes: u64,
}

/// The counters behind [`Compilations`].
#[derive(Debug, Default)]
struct Counters {
    compiled: AtomicU64,
    refused: AtomicU64,
    not_now: AtomicU64,
}

/// A component that is to be compiled, within the limits of its class.
pub(crate) struct Wanted<'a> {
    pub(crate) digest: Digest,
    pub(crate) bytes: &'a [u8],
    pub(crate) class: Class,
}

/// Compiles at most [`limit::COMPILATIONS`] components at once, and each digest only once at a time.
pub(crate) struct Compiler {
    /// The program that is started for each, see [`crate::compile_if_asked`].
    program: PathBuf,
    images: Images,
    refusals: Refusals,
    limits: Arc<Limits>,
    /// Running compilations.
    places: Places,
    /// Digests that are being compiled.
    digests: Turns<Digest>,
    counters: Counters,
}

impl Compiler {
    /// A compiler that caches its images below `data_dir`.
    pub(crate) fn new(program: PathBuf, data_dir: &Path, limits: Arc<Limits>) -> Result<Self, HostError> {
        let images = Images::open(data_dir, limits.standard.image.max(limits.interpreted.image), limits.images)?;
        let of = |class: Class| {
            let ClassLimits { compile, compile_memory, image, .. } = limits.of(class);
            let seconds = compile.as_secs_f32();
            format!("{class}: {seconds} s of CPU time, {compile_memory} bytes of memory, {image} bytes of machine code")
        };
        let (version, engine) = (env!("CARGO_PKG_VERSION"), images.compatibility());
        let under = format!("witan {version}, engine {engine:016x}, {}", Class::ALL.map(of).join(", "));
        let refusals = Refusals::open(data_dir, under);
        let (places, digests) = (Places::default(), Turns::default());
        Ok(Self { program, images, refusals, limits, places, digests, counters: Counters::default() })
    }

    /// The component's machine code, loaded into `engine`: from disk if it is cached, otherwise compiled now, once there is a place for
    /// another compilation, which is waited for until `until`. Blocks. The flag is true when it was compiled. The images of `needed`
    /// components stay on disk.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        wanted: &Wanted<'_>,
        until: Instant,
        needed: &dyn Fn(Digest) -> bool,
    ) -> Result<(Component, bool), Uncompiled> {
        let _turn = self.digests.take_until(&wanted.digest, until).ok_or(NotNow::Same)?;
        if let Some(component) = self.images.get(wanted.digest).and_then(|image| load(engine, &image).ok()) {
            return Ok((component, false));
        }
        self.compile_now(engine, wanted, until, needed).map(|component| (component, true))
    }

    /// The same, compiled even if its machine code is cached: whoever waits must not learn from the time that it was.
    pub(crate) fn component_anew(
        &self,
        engine: &Engine,
        wanted: &Wanted<'_>,
        until: Instant,
        needed: &dyn Fn(Digest) -> bool,
    ) -> Result<Component, Uncompiled> {
        let _turn = self.digests.take_until(&wanted.digest, until).ok_or(NotNow::Same)?;
        self.compile_now(engine, wanted, until, needed)
    }

    /// For a thread that has the digest's turn.
    fn compile_now(
        &self,
        engine: &Engine,
        wanted: &Wanted<'_>,
        until: Instant,
        needed: &dyn Fn(Digest) -> bool,
    ) -> Result<Component, Uncompiled> {
        let digest = wanted.digest;
        if let Some(why) = self.refusals.get(digest) {
            return Err(CompileError::Before(why).into());
        }
        let _place = self.places.take_until(until).ok_or(NotNow::Busy)?;
        let image = self.compile(wanted)?;
        if let Err(error) = self.images.put(digest, &image, needed) {
            tracing::warn!(%digest, %error, "a compiled plugin cannot be cached; it will be compiled again after a restart");
        }
        Ok(load(engine, &image).map_err(|error| CompileError::Load(format!("{error:#}")))?)
    }

    /// Compiles in a process of its own, and remembers a refusal.
    fn compile(&self, Wanted { digest, bytes, class }: &Wanted<'_>) -> Result<Vec<u8>, Uncompiled> {
        let compiled = spawn::compile(&self.program, bytes, self.limits.of(*class), self.limits.compile_wall);
        let counted = match &compiled {
            Ok(_) => &self.counters.compiled,
            Err(Uncompiled::Refused(why)) => {
                self.refusals.put(*digest, &why.to_string());
                &self.counters.refused
            }
            Err(Uncompiled::NotNow(_)) => &self.counters.not_now,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        compiled
    }

    /// Removes the cached image of a component that was removed.
    pub(crate) fn forget(&self, digest: Digest) {
        self.images.forget(digest);
    }

    pub(crate) fn counts(&self) -> Compilations {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { compiled, refused, not_now } = &self.counters;
        Compilations {
            compiled: read(compiled),
            refused: read(refused),
            not_now: read(not_now),
            image_bytes: self.images.bytes(),
        }
    }
}

/// The places of running compilations: [`limit::COMPILATIONS`] of them.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    left: Condvar,
}

impl Places {
    /// Waits for a place until this moment.
    fn take_until(&self, until: Instant) -> Option<Place<'_>> {
        let mut taken = lock(&self.taken);
        while *taken >= limit::COMPILATIONS {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            taken = self.left.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += 1;
        Some(Place(self))
    }
}

/// One of the places.
struct Place<'a>(&'a Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The smallest component.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// A compiler whose processes are this program, which ends at once.
    fn compiler(dir: &tempfile::TempDir, program: &str) -> Compiler {
        Compiler::new(program.into(), dir.path(), Arc::default()).unwrap()
    }

    fn failure(compiler: &Compiler, until: Instant) -> Uncompiled {
        let engine = crate::engine::runtime().unwrap();
        let wanted = Wanted { digest: Digest::of(EMPTY), bytes: EMPTY, class: Class::Standard };
        let compiled = compiler.component(&engine, &wanted, until, &|_| false);
        compiled.map(|_| ()).unwrap_err()
    }

    #[test]
    fn at_most_two_compile_at_once_and_others_wait_for_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let compiler = compiler(&dir, "/bin/true");
        let mut places: Vec<Place<'_>> = std::iter::from_fn(|| compiler.places.take_until(Instant::now())).collect();
        assert_eq!(places.len(), limit::COMPILATIONS);
        let busy = failure(&compiler, Instant::now());
        assert_eq!(busy, Uncompiled::NotNow(NotNow::Busy), "which says nothing about the component");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| failure(&compiler, soon()));
            places.pop();
            let tried = waits.join().unwrap();
            assert!(matches!(tried, Uncompiled::Refused(CompileError::Crashed(_))), "{tried}");
        });
    }

    #[test]
    fn a_refusal_is_remembered_and_a_failure_to_start_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let missing = compiler(&dir, "/nowhere/witan");
            assert!(matches!(failure(&missing, soon()), Uncompiled::NotNow(NotNow::Process(_))));
            assert_eq!(missing.counts().not_now, 1);
        }
        let first = compiler(&dir, "/bin/true");
        assert!(matches!(failure(&first, soon()), Uncompiled::Refused(CompileError::Crashed(_))));
        assert_eq!(first.counts().refused, 1);
        // As after a restart.
        let second = compiler(&dir, "/bin/true");
        assert!(matches!(failure(&second, soon()), Uncompiled::Refused(CompileError::Before(_))));
        assert_eq!(second.counts().refused, 0, "no process was started");
    }
}
