//! Compiles components to machine code: once per digest, each in a short-lived engine on a thread outside the runtime, and cached on
//! disk, so that a restart compiles nothing.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::digest::Digest;
use crate::disk::{remove_abandoned, write_file};
use crate::error::HostError;
use crate::limit;
use witan_kernel::sync::lock;

/// Why a component has no machine code. The sentence continues the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    #[error("{} compilations are running; try again when they have ended", limit::COMPILATIONS)]
    Busy,
    #[error("no thread to compile on: {0}")]
    Thread(String),
    /// In wasmtime's words.
    #[error("cannot be compiled: {0}")]
    Compiler(String),
    #[error("took longer than {} s to compile", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("made the compiler panic")]
    Panicked,
    /// In wasmtime's words.
    #[error("its machine code cannot be loaded: {0}")]
    Load(String),
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
    /// Wall time after which a compilation is abandoned.
    wall: Duration,
    /// Compilations that are running, abandoned ones included.
    running: Arc<AtomicUsize>,
    /// Digests that are being compiled.
    digests: Mutex<HashSet<Digest>>,
    done: Condvar,
}

impl Compiler {
    /// A compiler that caches its images below `data_dir`.
    pub(crate) fn new(data_dir: &Path, wall: Duration) -> Result<Self, HostError> {
        let images = Images::open(data_dir)?;
        Ok(Self { images, wall, running: Arc::default(), digests: Mutex::default(), done: Condvar::new() })
    }

    /// The component's machine code, loaded into `engine`: from disk if it is cached, otherwise compiled now. Blocks. The flag
    /// is true when it was compiled.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<(Component, bool), CompileError> {
        let _claim = self.claim(digest);
        if let Some(component) = self.images.get(digest).and_then(|image| load(engine, &image).ok()) {
            return Ok((component, false));
        }
        let image = self.compile(bytes)?;
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

    /// Waits while another thread compiles the same digest.
    fn claim(&self, digest: Digest) -> Claim<'_> {
        let mut digests = lock(&self.digests);
        while !digests.insert(digest) {
            digests = self.done.wait(digests).unwrap_or_else(PoisonError::into_inner);
        }
        Claim { compiler: self, digest }
    }

    /// Compiles on a separate thread. A compilation that exceeds its time is abandoned but still counts as running until it ends.
    fn compile(&self, bytes: &[u8]) -> Result<Vec<u8>, CompileError> {
        let permit = Permit::take(&self.running).ok_or(CompileError::Busy)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let bytes = bytes.to_vec();
        let work = move || {
            let image = crate::engine::compiler().and_then(|engine| engine.precompile_component(&bytes));
            // The receiver is gone if the compilation was abandoned.
            let _ = sender.send(image.map_err(|error| CompileError::Compiler(format!("{error:#}"))));
            drop(permit);
        };
        let spawned = thread::Builder::new().name("witan-compile".into()).stack_size(8 << 20).spawn(work);
        spawned.map_err(|error| CompileError::Thread(error.to_string()))?;
        match receiver.recv_timeout(self.wall) {
            Ok(image) => image,
            Err(RecvTimeoutError::Timeout) => Err(CompileError::Timeout(self.wall)),
            Err(RecvTimeoutError::Disconnected) => Err(CompileError::Panicked),
        }
    }
}

/// The right to compile one digest.
struct Claim<'a> {
    compiler: &'a Compiler,
    digest: Digest,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.compiler.digests).remove(&self.digest);
        self.compiler.done.notify_all();
    }
}

/// One of [`limit::COMPILATIONS`] running compilations.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(running: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |n: usize| (n < limit::COMPILATIONS).then_some(n + 1);
        running.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self(running.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The first bytes of an image file: a name and the version of the layout.
const MAGIC: &[u8; 8] = b"witanim1";

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
        let mut bytes = fs::read(self.path(digest)).ok()?;
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
    if let Ok(bytes) = fs::read(path)
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
            let compiler = Compiler::new(dir, Duration::from_secs(60)).unwrap();
            compiler.component(&engine, digest, EMPTY).unwrap().1
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

    #[test]
    fn at_most_two_compile_at_once() {
        let running = Arc::default();
        let permits: Vec<Permit> = std::iter::from_fn(|| Permit::take(&running)).collect();
        assert_eq!(permits.len(), limit::COMPILATIONS);
        drop(permits);
        assert!(Permit::take(&running).is_some());
    }
}
