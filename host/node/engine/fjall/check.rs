//! Checks a folder before the engine opens it.
//!
//! The engine cuts a journal at the first damaged batch, creates what it misses, and removes what it does not know. So nothing of a
//! folder is shown to it until everything that the mark covers was found whole. A damaged folder is left as it is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use witan_kernel::fault::Fault;
use xxhash_rust::xxh3::xxh3_128;

use super::journal::{self, Covered, Journal};
use super::mark::{self, Found, Mark};

/// Why a folder must not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It is open elsewhere.
    #[error("is in use by {0}: stop that process first, or give each node a folder of its own (--data-dir)")]
    InUse(String),
    #[error("cannot be examined: {0}")]
    Io(io::Error),
    /// Acknowledged data is missing or damaged.
    #[error(
        "is damaged and was not opened: {}: {what}. Nothing in it was changed. Acknowledged writes are lost or damaged, so treat it \
         like a lost disk: move the folder aside and keep it, start the node with an empty one, then fill that with `witan repair`",
        file.display()
    )]
    Damaged { file: PathBuf, what: String },
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged(file: impl Into<PathBuf>, what: impl Into<String>) -> Refused {
    Refused::Damaged { file: file.into(), what: what.into() }
}

/// Checks a folder, and repairs what an ended process may leave behind: an unfinished creation, a journal's torn end, a journal whose
/// removal the mark does not show yet.
pub(super) fn check(folder: &Path) -> Result<(), Refused> {
    let found = mark::read(folder)?;
    let is_new = fs::metadata(folder.join("version")).map_or(0, |version| version.len()) == 0;
    if is_new && found == Found::None {
        return clear_unfinished(folder);
    }
    if is_new {
        return Err(damaged(folder.join("version"), "it is missing or empty"));
    }
    // Kept until the end of this function: another process must not open the folder meanwhile.
    let _lock = lock(folder)?;
    // Another process may have written until a moment ago.
    let mark = match mark::read(folder)? {
        Found::None => Mark::default(),
        Found::Unusable(what) => return Err(damaged(mark::path(folder), what)),
        Found::Mark(mark) => mark,
    };
    if Fault::DamageBelieved.is_on() {
        return Ok(());
    }
    check_trees(folder, &mark)?;
    check_journals(folder, &mark)
}

/// The engine's file that is locked while a process has the folder open.
pub(super) const LOCK: &str = "lock";

/// The engine's own lock.
fn lock(folder: &Path) -> Result<File, Refused> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
    for _ in 0..3 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            // A process that is ending.
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(100)),
        }
    }
    Err(Refused::in_use(folder))
}

impl Refused {
    /// That another process has the folder open.
    pub(super) fn in_use(folder: &Path) -> Self {
        Self::InUse(super::holder(folder))
    }
}

/// Removes the files of a store whose creation was interrupted: the engine writes its version before it stores anything, and cannot
/// continue without it.
fn clear_unfinished(folder: &Path) -> Result<(), Refused> {
    let missing = |what: &str| damaged(folder.join("version"), format!("it is missing or empty, but there is {what}"));
    let journals = journal::ids(folder)?;
    if journals.iter().any(|id| *id != 0) {
        return Err(missing("a later journal"));
    }
    if !journals.is_empty() && Journal::open(folder, 0)?.has_tail()? {
        return Err(missing("a journal with data"));
    }
    let trees = folder.join("keyspaces");
    if trees.exists() && fs::read_dir(&trees)?.next().is_some() {
        return Err(missing("a table"));
    }
    for name in ["0.jnl", "version"] {
        ignore_missing(fs::remove_file(folder.join(name)))?;
    }
    Ok(ignore_missing(fs::remove_dir_all(trees))?)
}

pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The ids of the trees of tables in a folder.
fn tree_ids(folder: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder.join("keyspaces")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let id = |name: std::ffi::OsString| name.to_str().and_then(|name| name.parse::<u64>().ok());
    entries.filter_map(|entry| entry.map(|entry| id(entry.file_name())).transpose()).collect()
}

/// A tree's current version, and the rest of the file that names it. `None`: it has none, because its creation was interrupted.
fn current(folder: &Path, tree: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    let file = tree_folder(folder, tree).join("current");
    match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => match bytes.split_first_chunk::<8>() {
            Some((version, rest)) => Ok(Some((u64::from_le_bytes(*version), rest.to_vec()))),
            None => Ok(Some((0, Vec::new()))),
        },
    }
}

fn tree_folder(folder: &Path, tree: u64) -> PathBuf {
    folder.join("keyspaces").join(tree.to_string())
}

/// The trees of tables of an open folder, each with its current version.
pub(super) fn versions(folder: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut versions = Vec::new();
    for tree in tree_ids(folder)? {
        versions.extend(current(folder, tree)?.map(|(version, _)| (tree, version)));
    }
    versions.sort_unstable();
    Ok(versions)
}

/// Checks each tree's list of tables. The engine writes its checksum, but does not check it.
fn check_lists(folder: &Path) -> Result<(), Refused> {
    for tree in tree_ids(folder)? {
        let Some((version, rest)) = current(folder, tree)? else { continue };
        // The checksum of the list, and the kind of checksum.
        let Some((check, [0])) = rest.split_first_chunk::<16>() else {
            return Err(damaged(tree_folder(folder, tree).join("current"), "it is damaged"));
        };
        let list = tree_folder(folder, tree).join(format!("v{version}"));
        match fs::read(&list) {
            Ok(bytes) if xxh3_128(&bytes).to_le_bytes() == *check => {}
            Ok(_) => return Err(damaged(list, "its checksum does not match")),
            Err(error) => return Err(damaged(list, format!("the list of tables cannot be read: {error}"))),
        }
    }
    Ok(())
}

fn check_trees(folder: &Path, mark: &Mark) -> Result<(), Refused> {
    check_lists(folder)?;
    let found = versions(folder)?;
    for (tree, oldest) in &mark.trees {
        let file = folder.join("keyspaces").join(tree.to_string()).join("current");
        match found.iter().find(|(id, _)| id == tree) {
            None => return Err(damaged(file, "it is missing")),
            Some((_, version)) if version < oldest => {
                return Err(damaged(file, format!("it names version {version}, and version {oldest} was in use")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The second name of a journal's file, which keeps it until the mark shows that it was removed. The engine ignores it.
pub(super) fn kept(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("{id}.jnl.kept"))
}

fn check_journals(folder: &Path, mark: &Mark) -> Result<(), Refused> {
    restore_missing(folder, mark)?;
    for covered in &mark.journals {
        match Journal::open(folder, covered.id) {
            Ok(journal) => check_journal(folder, journal, covered)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Only the last journal that the mark shows, and later ones, may end in the middle of a batch.
    let Some(last) = mark.journals.last() else { return Ok(()) };
    for id in journal::ids(folder)?.into_iter().filter(|id| *id >= last.id) {
        cut_torn_end(folder, id)?;
    }
    Ok(())
}

/// The engine removes a journal once all of it is in tables, which the mark shows a little later. A journal that is missing is
/// therefore put back: the engine passes over what it has in tables.
fn restore_missing(folder: &Path, mark: &Mark) -> Result<(), Refused> {
    let present = journal::ids(folder)?;
    let missing: Vec<u64> = mark.journals.iter().map(|covered| covered.id).filter(|id| !present.contains(id)).collect();
    let Some(last) = mark.journals.last() else { return Ok(()) };
    // The engine removes journals in order. If one that the mark does not show yet is gone, so was everything before it. (A version
    // that keeps no mark has been at work, or nothing of those journals had been synced.)
    if present.first().is_some_and(|first| *first > last.id + 1) {
        tracing::warn!(folder = %folder.display(), "journals were removed that the mark does not show; the mark is renewed");
        return Ok(());
    }
    for id in missing {
        let (path, kept) = (journal::path(folder, id), kept(folder, id));
        match fs::hard_link(&kept, &path) {
            Ok(()) => {
                tracing::warn!(journal = %path.display(), "a journal that the mark shows was missing, and was put back")
            }
            // On a file system without second names, a journal that is missing before others cannot be distinguished from a removed one.
            Err(_) if !has_kept(folder)? && present.iter().any(|other| *other > id) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(path, "it is missing")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn has_kept(folder: &Path) -> io::Result<bool> {
    let mut entries = fs::read_dir(folder)?;
    Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|kept| kept == "kept"))))
}

fn check_journal(folder: &Path, mut journal: Journal, covered: &Covered) -> Result<(), Refused> {
    journal.read_to(covered.end)?;
    if journal.covered == *covered {
        return Ok(());
    }
    let what = if journal.covered.end < covered.end {
        format!(
            "the batch that begins at byte {} is damaged or missing, and the first {} bytes were acknowledged",
            journal.covered.end, covered.end
        )
    } else {
        format!("its first {} bytes are not those that were acknowledged", covered.end)
    };
    Err(damaged(journal::path(folder, covered.id), what))
}

/// Cuts a journal behind its last whole batch. What follows was never acknowledged: it was being written when the process or the
/// machine ended, and the engine may refuse to open it.
fn cut_torn_end(folder: &Path, id: u64) -> Result<(), Refused> {
    let mut journal = Journal::open(folder, id)?;
    journal.read_on()?;
    if !journal.has_tail()? {
        return Ok(());
    }
    let path = journal::path(folder, id);
    tracing::warn!(
        journal = %path.display(),
        at = journal.covered.end,
        "a journal ends with writes that were never acknowledged, and was cut there"
    );
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(journal.covered.end)?;
    file.sync_all()?;
    Ok(())
}
