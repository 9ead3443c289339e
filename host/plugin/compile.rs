//! Machine code out of components: in engines that are thrown away, on threads of their own, once per digest, and kept on
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

pub(crate) use witan_kernel::sync::lock;

use crate::digest::Digest;
use crate::limit;

/// Loads an image that [`Compiler`] has made: compiled in this process, or authenticated by [`Images`].
#[allow(unsafe_code)]
pub(crate) fn load(engine: &Engine, image: &[u8]) -> Result<Component, wasmtime::Error> {
    // SAFETY: an image is machine code that will be run. It comes from `precompile_component` in this process, or from a
    // file that only a holder of this host's key can have written, made by an engine of the same compatibility hash.
    unsafe { Component::deserialize(engine, image) }
}

/// Writes a file whole or not at all: beside, synced, then renamed.
pub(crate) fn write_file(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let beside = path.with_extension(format!("{:016x}.part", rand::random::<u64>()));
    let mut file = fs::File::create(&beside)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(beside, path)
}

/// Removes what a crash has left half-written: files that [`write_file`] began an hour ago or longer.
pub(crate) fn sweep(folder: &Path) {
    let hour = Duration::from_secs(3600);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_part = entry.path().extension().is_some_and(|extension| extension == "part");
        let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|time| time.elapsed().ok());
        if is_part && age.is_some_and(|age| age > hour) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Compiles, at most [`limit::COMPILATIONS`] at once and one per digest.
pub(crate) struct Compiler {
    images: Images,
    wall: Duration,
    running: Arc<AtomicUsize>,
    digests: Mutex<HashSet<Digest>>,
    done: Condvar,
}

impl Compiler {
    /// A compiler that keeps its images below `data_dir`.
    pub(crate) fn new(data_dir: &Path, wall: Duration) -> Result<Self, String> {
        let images = Images::open(data_dir)?;
        Ok(Self { images, wall, running: Arc::default(), digests: Mutex::default(), done: Condvar::new() })
    }

    /// The component's machine code, loaded into `engine`: from disk if it is there, else compiled now. Blocks. The flag
    /// is true when it was compiled.
    pub(crate) fn component(&self, engine: &Engine, digest: Digest, bytes: &[u8]) -> Result<(Component, bool), String> {
        let _turn = self.turn(digest);
        if let Some(component) = self.images.get(digest).and_then(|image| load(engine, &image).ok()) {
            return Ok((component, false));
        }
        let image = self.compile(bytes)?;
        if let Err(error) = self.images.put(digest, &image) {
            tracing::warn!(%digest, %error, "the compiled plugin cannot be kept; it will be compiled again after a restart");
        }
        let component =
            load(engine, &image).map_err(|error| format!("its machine code cannot be loaded: {error:#}"))?;
        Ok((component, true))
    }

    /// Forgets the image of an artifact that is gone.
    pub(crate) fn forget(&self, digest: Digest) {
        // A file that stays is found and used, or overwritten, later.
        let _ = fs::remove_file(self.images.path(digest));
    }

    /// Waits while another thread compiles the same digest.
    fn turn(&self, digest: Digest) -> Turn<'_> {
        let mut digests = lock(&self.digests);
        while !digests.insert(digest) {
            digests = self.done.wait(digests).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { compiler: self, digest }
    }

    /// Compiles on a thread of its own. One that does not end in time is left behind and goes on counting.
    fn compile(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let permit = Permit::take(&self.running).ok_or_else(|| {
            format!("{} compilations are running; try again when they have ended", limit::COMPILATIONS)
        })?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let bytes = bytes.to_vec();
        let work = move || {
            let image = crate::engine::compiler().and_then(|engine| engine.precompile_component(&bytes));
            // The receiver is gone when this took too long.
            let _ = sender.send(image.map_err(|error| format!("cannot be compiled: {error:#}")));
            drop(permit);
        };
        let spawned = thread::Builder::new().name("witan-compile".into()).stack_size(8 << 20).spawn(work);
        spawned.map_err(|error| format!("no thread to compile on: {error}"))?;
        match receiver.recv_timeout(self.wall) {
            Ok(image) => image,
            Err(RecvTimeoutError::Timeout) => Err(format!("took longer than {} s to compile", self.wall.as_secs_f32())),
            Err(RecvTimeoutError::Disconnected) => Err("made the compiler panic".into()),
        }
    }
}

struct Turn<'a> {
    compiler: &'a Compiler,
    digest: Digest,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.compiler.digests).remove(&self.digest);
        self.compiler.done.notify_all();
    }
}

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

/// The first bytes of an image's file: a name and the version of its layout.
const MAGIC: &[u8; 8] = b"witanim1";

/// Images on disk: `MAGIC`, 32 bytes of HMAC-SHA-256 over digest, compatibility and image, then the image.
struct Images {
    folder: PathBuf,
    key: [u8; 32],
    /// Changes with the engine's version, its settings and the processor's features.
    compatibility: u64,
}

impl Images {
    fn open(data_dir: &Path) -> Result<Self, String> {
        let folder = data_dir.join("images");
        fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
        sweep(&folder);
        let path = data_dir.join("image.key");
        let key = read_or_draw_key(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let engine = crate::engine::compiler().map_err(|error| format!("make a compiler: {error:#}"))?;
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

    /// The image, if there is one that this host has written.
    fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(digest)).ok()?;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (tag, image) = rest.split_at_checked(32)?;
        let mut mac = self.mac(digest)?;
        mac.update(image);
        if magic != MAGIC || mac.verify_slice(tag).is_err() {
            tracing::warn!(%digest, "a compiled plugin on disk was not written by this host; it is compiled again");
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

/// This host's key: 32 random bytes that only its user can read.
fn read_or_draw_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(bytes) = fs::read(path)
        && let Ok(key) = bytes.try_into()
    {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let beside = path.with_extension("part");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest component.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn a_second_compiler_finds_what_the_first_has_made() {
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
    fn an_image_that_another_has_written_is_not_loaded() {
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
