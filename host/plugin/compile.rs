//! Compiles components to machine code: once per digest, each in a short-lived engine on a thread outside the runtime, and cached on
//! disk, so that a restart compiles nothing.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::digest::Digest;
use crate::disk::{remove_abandoned, write_file};
use crate::error::HostError;
use crate::limit::{self, Limits};
use crate::turn::Turns;
use witan_kernel::sync::lock;

/// Why a component has no machine code. The sentence continues the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    /// In wasmtime's words.
    #[error("cannot be compiled: {0}")]
    Compiler(String),
    #[error("took longer than {} s of CPU time to compile", .0.as_secs_f32())]
    CpuTime(Duration),
    #[error("made the compiler panic")]
    Panicked,
    /// In wasmtime's words.
    #[error("its machine code cannot be loaded: {0}")]
    Load(String),
}

/// Why a component has not been compiled, which says nothing about the component: it may be compiled later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNow {
    #[error("{} other plugins are being compiled; try again in a minute", limit::COMPILATIONS)]
    Busy,
    #[error("the same plugin is being compiled; try again in a minute")]
    Same,
    #[error("no thread to compile on can be started ({0}); try again in a minute")]
    Thread(String),
    #[error("the plugin was not compiled within {} s: this machine is overloaded; try again later", .0.as_secs())]
    WallTime(Duration),
}

/// What a compilation failed of: the component, or the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Uncompiled {
    #[error(transparent)]
    Refused(#[from] CompileError),
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

/// Loads an image that [`Compiler`] made: compiled in this process, or authenticated by [`Images`].
#[allow(unsafe_code)]
pub(crate) fn load(engine: &Engine, image: &[u8]) -> Result<Component, wasmtime::Error> {
    // SAFETY: an image is machine code that will be run. It comes from `precompile_component` in this process, or from a
    // file that only a holder of this host's key can have written, compiled by an engine with the same compatibility hash.
    unsafe { Component::deserialize(engine, image) }
}

/// Compiles at most [`limit::COMPILATIONS`] components at once, and each digest only once at a time.
pub(crate) struct Compiler {
    images: Images,
    /// CPU time after which a compilation is abandoned: the same component takes about as much of it on a busy machine as on an idle one.
    cpu: Duration,
    /// Wall time after which a compilation is abandoned, whatever CPU time it was given.
    wall: Duration,
    /// Running compilations.
    places: Arc<Places>,
    /// Digests that are being compiled.
    digests: Turns<Digest>,
}

impl Compiler {
    /// A compiler that caches its images below `data_dir`.
    pub(crate) fn new(data_dir: &Path, limits: &Limits) -> Result<Self, HostError> {
        let images = Images::open(data_dir)?;
        let (cpu, wall) = (limits.compile, limits.compile_wall);
        Ok(Self { images, cpu, wall, places: Arc::default(), digests: Turns::default() })
    }

    /// The component's machine code, loaded into `engine`: from disk if it is cached, otherwise compiled now, once there is a place for
    /// another compilation, which is waited for until `until`. Blocks. The flag is true when it was compiled.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: Digest,
        bytes: &[u8],
        until: Instant,
    ) -> Result<(Component, bool), Uncompiled> {
        let _turn = self.digests.take_until(&digest, until).ok_or(NotNow::Same)?;
        if let Some(component) = self.images.get(digest).and_then(|image| load(engine, &image).ok()) {
            return Ok((component, false));
        }
        let place = self.places.take_until(until).ok_or(NotNow::Busy)?;
        let image = self.compile(bytes, place)?;
        if let Err(error) = self.images.put(digest, &image) {
            tracing::warn!(%digest, %error, "a compiled plugin cannot be cached; it will be compiled again after a restart");
        }
        let component = load(engine, &image).map_err(|error| CompileError::Load(format!("{error:#}")))?;
        Ok((component, true))
    }

    /// Removes the cached image of a component that was removed.
    pub(crate) fn forget(&self, digest: Digest) {
        // A file that cannot be removed does no harm: should the component come back, it is used or overwritten.
        let _ = fs::remove_file(self.images.path(digest));
    }

    /// Compiles on a separate thread. A compilation that exceeds its time is abandoned but keeps its place until it ends, because a
    /// thread cannot be stopped; a process could. This is the one function that would start it instead: it gets the component's bytes
    /// and a place, and returns an image.
    fn compile(&self, bytes: &[u8], place: Place) -> Result<Vec<u8>, Uncompiled> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (clock, clocks) = mpsc::sync_channel(1);
        let bytes = bytes.to_vec();
        let work = move || {
            let _ = clock.send(ThreadClock::of_this_thread());
            let image = crate::engine::compiler().and_then(|engine| engine.precompile_component(&bytes));
            // Before the answer: who has it may compile the next one at once.
            drop(place);
            // The receiver is gone if the compilation was abandoned.
            let _ = sender.send(image.map_err(|error| CompileError::Compiler(format!("{error:#}"))));
        };
        let spawned = thread::Builder::new().name("witan-compile".into()).stack_size(8 << 20).spawn(work);
        spawned.map_err(|error| NotNow::Thread(error.to_string()))?;
        let started = Instant::now();
        let clock = clocks.recv_timeout(self.wall).ok().flatten();
        loop {
            match receiver.recv_timeout(LOOK.min(self.cpu)) {
                Ok(image) => return Ok(image?),
                Err(RecvTimeoutError::Disconnected) => return Err(CompileError::Panicked.into()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Without a clock the elapsed time is taken, which is at least the CPU time.
            let elapsed = started.elapsed();
            let used = clock.as_ref().and_then(ThreadClock::read).unwrap_or(elapsed);
            if used > self.cpu {
                return Err(CompileError::CpuTime(self.cpu).into());
            }
            if elapsed > self.wall {
                return Err(NotNow::WallTime(self.wall).into());
            }
        }
    }
}

/// Time between two looks at the CPU time of a compilation. It may be exceeded by as much.
const LOOK: Duration = Duration::from_millis(100);

/// The CPU time of a thread, as other threads can read it. `clock_gettime` would give only that of the thread that calls it, which is
/// busy in the compiler.
struct ThreadClock(fs::File);

impl ThreadClock {
    /// `None` where the kernel does not account for it.
    fn of_this_thread() -> Option<Self> {
        let clock = Self(fs::File::open("/proc/thread-self/schedstat").ok()?);
        clock.read().map(|_| clock)
    }

    fn read(&self) -> Option<Duration> {
        // Nanoseconds on a CPU, nanoseconds waiting for one, and time slices: three numbers of at most 20 digits.
        let mut text = [0; 80];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let first = text[..length].split(|byte| *byte == b' ').next()?;
        Some(Duration::from_nanos(std::str::from_utf8(first).ok()?.parse().ok()?))
    }
}

/// The places of running compilations, abandoned ones included: [`limit::COMPILATIONS`] of them.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    left: Condvar,
}

impl Places {
    /// Waits for a place until this moment.
    fn take_until(self: &Arc<Self>, until: Instant) -> Option<Place> {
        let mut taken = lock(&self.taken);
        while *taken >= limit::COMPILATIONS {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            taken = self.left.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += 1;
        Some(Place(Arc::clone(self)))
    }
}

/// One of the places.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.left.notify_one();
    }
}

/// The first bytes of an image file: a name and the version of the layout.
const MAGIC: &[u8; 8] = b"witanim1";

/// Largest image that is read, in bytes: machine code has 5 to 20 times the bytes of its component, and a component a few megabytes.
const IMAGE_BYTES: u64 = 1 << 30;

/// Cached images on disk: `MAGIC`, 32 bytes of HMAC-SHA-256 over digest, compatibility hash and image, then the image.
struct Images {
    folder: PathBuf,
    key: [u8; 32],
    /// Hash of the engine's version, its settings and the processor's features.
    compatibility: u64,
}

impl Images {
    fn open(data_dir: &Path) -> Result<Self, HostError> {
        let folder = data_dir.join("images");
        fs::create_dir_all(&folder).map_err(HostError::file("create", &folder))?;
        remove_abandoned(&folder);
        let path = data_dir.join("image.key");
        let key = read_or_create_key(&path).map_err(HostError::file("read", &path))?;
        let engine = crate::engine::compiler().map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { folder, key, compatibility: hasher.finish() })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}-{:016x}.cwasm", self.compatibility))
    }

    fn mac(&self, digest: Digest) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(digest.bytes());
        mac.update(&self.compatibility.to_be_bytes());
        Some(mac)
    }

    /// The image, if this host wrote one.
    fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        let mut bytes = witan_file::read(&self.path(digest), IMAGE_BYTES).ok()?;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (tag, image) = rest.split_at_checked(32)?;
        let mut mac = self.mac(digest)?;
        mac.update(image);
        if magic != MAGIC || mac.verify_slice(tag).is_err() {
            tracing::warn!(%digest, "a cached plugin image was not written by this host; the plugin is compiled again");
            return None;
        }
        Some(bytes.split_off(MAGIC.len() + 32))
    }

    fn put(&self, digest: Digest, image: &[u8]) -> io::Result<()> {
        let mut mac = self.mac(digest).ok_or_else(|| io::Error::other("no key"))?;
        mac.update(image);
        write_file(&self.path(digest), &[MAGIC, &mac.finalize().into_bytes(), image])
    }
}

/// This host's key: 32 random bytes in a file that only its user can read.
fn read_or_create_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(bytes) = witan_file::read(path, 32)
        && let Ok(key) = bytes.try_into()
    {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let temporary = path.with_extension("part");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest component.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn a_second_compiler_uses_the_image_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let engine = crate::engine::runtime().unwrap();
        let digest = Digest::of(EMPTY);
        let compiled = |dir| {
            let compiler = Compiler::new(dir, &Limits::default()).unwrap();
            compiler.component(&engine, digest, EMPTY, soon()).unwrap().1
        };
        assert!(compiled(dir.path()));
        assert!(!compiled(dir.path()));
    }

    #[test]
    fn an_image_that_this_host_did_not_write_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let digest = Digest::of(EMPTY);
        images.put(digest, b"image").unwrap();
        assert_eq!(images.get(digest).as_deref(), Some(&b"image"[..]));
        let path = images.path(digest);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(images.get(digest), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(images.get(digest), None);
        let other = Digest::of(b"other");
        images.put(other, b"image").unwrap();
        fs::rename(images.path(other), &path).unwrap();
        assert_eq!(images.get(digest), None, "another component's image");
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn at_most_two_compile_at_once_and_others_wait_for_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let engine = crate::engine::runtime().unwrap();
        let compiler = Compiler::new(dir.path(), &Limits::default()).unwrap();
        let take = |until| compiler.places.take_until(until);
        let mut places: Vec<Place> = std::iter::from_fn(|| take(Instant::now())).collect();
        assert_eq!(places.len(), limit::COMPILATIONS);
        let compiled = |until| compiler.component(&engine, Digest::of(EMPTY), EMPTY, until);
        let busy = compiled(Instant::now()).map(|_| ()).unwrap_err();
        assert_eq!(busy, Uncompiled::NotNow(NotNow::Busy), "which says nothing about the component");
        thread::scope(|scope| {
            let waits = scope.spawn(|| compiled(soon()).unwrap().1);
            places.pop();
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn waiting_for_a_cpu_does_not_count_as_compiling() {
        let (clock, clocks) = mpsc::sync_channel(1);
        let (end, ended) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            clock.send(ThreadClock::of_this_thread()).unwrap();
            ended.recv().unwrap();
        });
        let Some(clock) = clocks.recv().unwrap() else { return end.send(()).unwrap() };
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(200) {
            thread::sleep(Duration::from_millis(10));
        }
        let used = clock.read().unwrap();
        assert!(used < started.elapsed() / 2, "{used:?} of the CPU, although it did nothing");
        end.send(()).unwrap();
        sleeper.join().unwrap();
    }

    #[test]
    fn the_cpu_time_of_a_compilation_is_bounded_and_its_wall_time_says_nothing_about_the_component() {
        let dir = tempfile::tempdir().unwrap();
        let failure = |limits: &Limits| {
            let compiler = Compiler::new(dir.path(), limits).unwrap();
            let place = compiler.places.take_until(Instant::now()).unwrap();
            compiler.compile(&many_functions(), place).unwrap_err()
        };
        let cpu = Duration::from_millis(1);
        let brief = Limits { compile: cpu, ..Limits::default() };
        assert_eq!(failure(&brief), Uncompiled::Refused(CompileError::CpuTime(cpu)));
        let overloaded = Limits { compile_wall: Duration::ZERO, ..Limits::default() };
        assert_eq!(failure(&overloaded), Uncompiled::NotNow(NotNow::WallTime(Duration::ZERO)));
    }

    /// A component that takes a second or so to compile.
    fn many_functions() -> Vec<u8> {
        let adds = "(i32.add (local.get 0) (i32.mul (local.get 0) ".repeat(40) + "(local.get 0)" + &"))".repeat(40);
        let function = format!("(func (param i32) (result i32) {adds})");
        wat::parse_str(format!("(component (core module {}))", function.repeat(3000))).unwrap()
    }
}
