//! Machine code on disk, so that a restart compiles nothing: authenticated, and bounded.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::digest::Digest;
use crate::disk::{remove_abandoned, write_file};
use crate::error::HostError;
use witan_kernel::sync::lock;

/// The first bytes of an image file: a name and the version of the layout.
const MAGIC: &[u8; 8] = b"witanim1";
/// Bytes before the image: the magic and the authentication code.
const HEAD: usize = MAGIC.len() + 32;
/// Extension of an image file.
const EXTENSION: &str = "cwasm";

/// Cached images on disk: `MAGIC`, 32 bytes of HMAC-SHA-256 over digest, compatibility hash and image, then the image.
pub(crate) struct Images {
    folder: PathBuf,
    key: [u8; 32],
    /// Hash of the engine's version, its settings and the processor's features.
    compatibility: u64,
    /// Largest image, in bytes.
    largest: u64,
    /// Most bytes of all of them.
    most: u64,
    /// Held while room is made and used, so that two threads do not take the same. Only whoever has compiled something waits for it.
    writing: Mutex<()>,
    /// Bytes of the folder when it was last written to.
    bytes: AtomicU64,
}

impl Images {
    pub(crate) fn open(data_dir: &Path, largest: usize, most: u64) -> Result<Self, HostError> {
        let folder = data_dir.join("images");
        fs::create_dir_all(&folder).map_err(HostError::file("create", &folder))?;
        remove_abandoned(&folder);
        let path = data_dir.join("image.key");
        let key = read_or_create_key(&path).map_err(HostError::file("read", &path))?;
        let engine = crate::engine::compiler().map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let (largest, bytes) = (largest as u64, AtomicU64::default());
        let images =
            Self { folder, key, compatibility: hasher.finish(), largest, most, writing: Mutex::default(), bytes };
        images.count();
        Ok(images)
    }

    /// What machine code has to fit, as text.
    pub(crate) fn compatibility(&self) -> u64 {
        self.compatibility
    }

    /// Bytes of all images.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}-{:016x}.{EXTENSION}", self.compatibility))
    }

    fn mac(&self, digest: Digest) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(digest.bytes());
        mac.update(&self.compatibility.to_be_bytes());
        Some(mac)
    }

    /// The image, if this host wrote one. It counts as used now.
    pub(crate) fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let mut bytes = witan_file::read(&path, self.largest + HEAD as u64).ok()?;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (tag, image) = rest.split_at_checked(32)?;
        let mut mac = self.mac(digest)?;
        mac.update(image);
        if magic != MAGIC || mac.verify_slice(tag).is_err() {
            tracing::warn!(%digest, "a cached plugin image was not written by this host; the plugin is compiled again");
            return None;
        }
        // Without it the image may be evicted early, and is then compiled again.
        let _ = fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(bytes.split_off(HEAD))
    }

    /// Keeps an image, for which others that are not `needed` are evicted, the least recently used first.
    pub(crate) fn put(&self, digest: Digest, image: &[u8], needed: &dyn Fn(Digest) -> bool) -> io::Result<()> {
        let mut mac = self.mac(digest).ok_or_else(|| io::Error::other("no key"))?;
        mac.update(image);
        let _writing = lock(&self.writing);
        let path = self.path(digest);
        self.make_room((image.len() + HEAD) as u64, &path, needed)?;
        write_file(&path, &[MAGIC, &mac.finalize().into_bytes(), image])?;
        self.count();
        Ok(())
    }

    /// Removes the image of a component that was removed.
    pub(crate) fn forget(&self, digest: Digest) {
        // A file that cannot be removed does no harm: should the component come back, it is used or overwritten.
        let _ = fs::remove_file(self.path(digest));
        self.count();
    }

    /// For a thread that writes to `path`.
    fn make_room(&self, bytes: u64, path: &Path, needed: &dyn Fn(Digest) -> bool) -> io::Result<()> {
        let mut files = self.files();
        files.retain(|file| file.path != path);
        let mut all: u64 = files.iter().map(|file| file.bytes).sum();
        // Those of another version of this program are of no use to this one.
        files.retain(|file| !(file.is_of(self.compatibility) && file.digest().is_some_and(needed)));
        files.sort_by_key(|file| file.used);
        let mut evicted = files.into_iter();
        while all.saturating_add(bytes) > self.most {
            let Some(file) = evicted.next() else {
                let most = self.most;
                return Err(io::Error::other(format!(
                    "the images of bound plugins take up all of the {most} bytes allowed"
                )));
            };
            fs::remove_file(&file.path)?;
            all -= file.bytes;
            tracing::debug!(image = %file.path.display(), bytes = file.bytes, "an image was evicted");
        }
        Ok(())
    }

    fn count(&self) {
        self.bytes.store(self.files().iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
    }

    fn files(&self) -> Vec<ImageFile> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| ImageFile::of(&entry)).collect()
    }
}

/// A file of the folder.
struct ImageFile {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl ImageFile {
    fn of(entry: &fs::DirEntry) -> Option<Self> {
        let path = entry.path();
        path.extension().filter(|extension| *extension == EXTENSION)?;
        let metadata = entry.metadata().ok()?;
        Some(Self { path, bytes: metadata.len(), used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
    }

    /// The digest and the compatibility hash that its name consists of.
    fn name(&self) -> Option<(&str, &str)> {
        self.path.file_stem()?.to_str()?.split_once('-')
    }

    fn digest(&self) -> Option<Digest> {
        Digest::parse(self.name()?.0)
    }

    fn is_of(&self, compatibility: u64) -> bool {
        self.name().is_some_and(|(_, name)| name == format!("{compatibility:016x}"))
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
    use std::time::Duration;

    fn open(dir: &tempfile::TempDir, most: u64) -> Images {
        Images::open(dir.path(), 1 << 20, most).unwrap()
    }

    fn put(images: &Images, digest: Digest, image: &[u8]) {
        images.put(digest, image, &|_| false).unwrap();
    }

    #[test]
    fn an_image_that_this_host_did_not_write_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let images = open(&dir, 1 << 20);
        let digest = Digest::of(b"component");
        put(&images, digest, b"image");
        assert_eq!(images.get(digest).as_deref(), Some(&b"image"[..]));
        let path = images.path(digest);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(images.get(digest), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(images.get(digest), None);
        let other = Digest::of(b"other");
        put(&images, other, b"image");
        fs::rename(images.path(other), &path).unwrap();
        assert_eq!(images.get(digest), None, "another component's image");
    }

    #[test]
    fn the_folder_is_bounded_and_the_least_recently_used_go_first() {
        let dir = tempfile::tempdir().unwrap();
        // Room for three.
        let images = open(&dir, 3 * 1000);
        let digests = [0_u8, 1, 2, 3, 4].map(|n| Digest::of(&[n]));
        let used = |at: usize, seconds: u64| {
            let file = fs::File::options().append(true).open(images.path(digests[at])).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        for (at, digest) in digests[..3].iter().enumerate() {
            put(&images, *digest, &[0; 900]);
            used(at, at as u64);
        }
        let kept = || digests.map(|digest| images.path(digest).exists());
        // Used now.
        assert!(images.get(digests[0]).is_some());
        put(&images, digests[3], &[0; 900]);
        assert_eq!(kept(), [true, false, true, true, false]);
        assert!(images.bytes() <= 3 * 1000);
        used(0, 10);
        used(3, 11);
        // The oldest is needed, the next two are not.
        let needed = |digest| digest == digests[2];
        images.put(digests[4], &[0; 900], &needed).unwrap();
        assert_eq!(kept(), [false, false, true, true, true]);
        // Nothing is evicted that is needed.
        images.put(digests[0], &[0; 900], &|_| true).unwrap_err();
        assert_eq!(kept(), [false, false, true, true, true]);
    }

    #[test]
    fn images_of_another_version_are_evicted_too() {
        let dir = tempfile::tempdir().unwrap();
        let images = open(&dir, 1000);
        let digest = Digest::of(b"component");
        let stale = images.folder.join(format!("{digest}-{:016x}.{EXTENSION}", !images.compatibility));
        fs::write(&stale, [0; 900]).unwrap();
        images.put(digest, &[0; 900], &|_| true).unwrap();
        assert!(!stale.exists() && images.path(digest).exists());
    }
}
