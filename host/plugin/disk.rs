//! Files that are written whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Extension of a file that is being written.
const PARTIAL: &str = "part";
/// Age from which a partial file is taken for the remains of a crash: no write takes nearly as long.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Writes a file atomically: to a temporary file in the same directory, synced, then renamed.
pub(crate) fn write_file(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{:016x}.{PARTIAL}", rand::random::<u64>()));
    let mut file = fs::File::create(&temporary)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

/// Removes files that [`write_file`] never finished because the process crashed.
pub(crate) fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_partial = entry.path().extension().is_some_and(|extension| extension == PARTIAL);
        let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|time| time.elapsed().ok());
        if is_partial && age.is_some_and(|age| age > ABANDONED) {
            // A file that cannot be removed does no harm: its name is never used again.
            let _ = fs::remove_file(entry.path());
        }
    }
}
