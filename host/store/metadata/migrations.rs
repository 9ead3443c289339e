//! The migrations of both databases, compiled into the program.
//!
//! They are listed here rather than collected by sqlx's `migrate!`: that macro compiles every database driver, including SQLite's C
//! code, a second time for the compiler's own use.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// A file under `migrations/<database>`: its version, what follows the version in its name, and its text.
type File = (i64, &'static str, &'static str);

macro_rules! files {
    ($folder:literal: $(($version:literal, $name:literal, $file:literal)),+ $(,)?) => {
        &[$(($version, $name, include_str!(concat!("../../../migrations/", $folder, "/", $file)))),+]
    };
}

const SQLITE: &[File] = files!("sqlite":
    (1, "metadata", "0001_metadata.sql"),
    (2, "placement epoch", "0002_placement_epoch.sql"),
    (3, "stores", "0003_stores.sql"),
    (4, "era", "0004_era.sql"),
    (5, "capabilities", "0005_capabilities.sql"),
    (6, "idempotency retention", "0006_idempotency_retention.sql"),
    (7, "upkeep claims", "0007_upkeep_claims.sql"),
    (8, "fences", "0008_fences.sql"),
    (9, "placement changes", "0009_placement_changes.sql"),
    (10, "zones", "0010_zones.sql"),
    (11, "maintenance", "0011_maintenance.sql"),
    (12, "generations", "0012_generations.sql"),
    (13, "candidates", "0013_candidates.sql"),
    (14, "plugin owners", "0014_plugin_owners.sql"),
    (15, "plugin classes", "0015_plugin_classes.sql"),
    (16, "plugin pushes", "0016_plugin_pushes.sql"),
);

const POSTGRES: &[File] = files!("postgres":
    (1, "metadata", "0001_metadata.sql"),
    (2, "placement epoch", "0002_placement_epoch.sql"),
    (3, "stores", "0003_stores.sql"),
    (4, "era", "0004_era.sql"),
    (5, "capabilities", "0005_capabilities.sql"),
    (6, "idempotency retention", "0006_idempotency_retention.sql"),
    (7, "upkeep claims", "0007_upkeep_claims.sql"),
    (8, "fences", "0008_fences.sql"),
    (9, "placement changes", "0009_placement_changes.sql"),
    (10, "zones", "0010_zones.sql"),
    (11, "maintenance", "0011_maintenance.sql"),
    (12, "generations", "0012_generations.sql"),
    (13, "candidates", "0013_candidates.sql"),
    (14, "plugin owners", "0014_plugin_owners.sql"),
    (15, "plugin classes", "0015_plugin_classes.sql"),
    (16, "plugin pushes", "0016_plugin_pushes.sql"),
);

/// The migrations of an SQLite database.
pub(super) fn sqlite() -> Migrator {
    migrator(SQLITE)
}

/// The migrations of a PostgreSQL database.
pub(super) fn postgres() -> Migrator {
    migrator(POSTGRES)
}

/// The newest migration.
pub(super) fn newest() -> i64 {
    POSTGRES.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

fn migrator(files: &[File]) -> Migrator {
    let migration = |&(version, name, text): &File| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, text.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(files.iter().map(migration).collect());
    // A newer version of this program may have applied migrations that only add to the schema: `understood` decides.
    migrator.set_ignore_missing(true);
    migrator
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use super::*;

    /// Every file of a folder is listed, under its own version and name.
    fn listed(folder: &str, files: &[File]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(folder);
        let entries = std::fs::read_dir(&path).expect("lists the migrations");
        let mut found: Vec<String> =
            entries.map(|entry| entry.expect("reads an entry").file_name().to_string_lossy().into_owned()).collect();
        found.sort();
        let listed: Vec<String> =
            files.iter().map(|(version, name, _)| format!("{version:04}_{}.sql", name.replace(' ', "_"))).collect();
        assert_eq!(found, listed);
    }

    #[test]
    fn every_migration_is_listed() {
        listed("sqlite", SQLITE);
        listed("postgres", POSTGRES);
    }

    /// A released migration never changes: databases remember its checksum and refuse to start with another one.
    #[test]
    fn released_migrations_keep_their_checksums() {
        let starts = |migrator: Migrator| -> Vec<String> {
            let start = |migration: &Migration| {
                migration.checksum.iter().take(8).fold(String::new(), |mut hex, byte| {
                    _ = write!(hex, "{byte:02x}");
                    hex
                })
            };
            migrator.iter().map(start).collect()
        };
        assert_eq!(
            starts(sqlite()),
            [
                "d2e0f74d03ec2e7d",
                "a07d848c9ddf5141",
                "b2b1b9183fa4616d",
                "1a40829405ff3e49",
                "6fefd88acae20b0a",
                "d8a355b5439aec61",
                "4f1ea571c439a25b",
                "d18d3f61aab3b14a",
                "d73e619b441ec407",
                "ca485ee810cde26c",
                "4ad3fc2fd663836b",
                "7ba944f5824a12d6",
                "d0b1b7758a1950d4",
                "bb0c5c573044a4f2",
                "3275b47af89e1f37",
                "46cb704ab9c5657d"
            ]
        );
        assert_eq!(
            starts(postgres()),
            [
                "39255f3a3fc3f564",
                "c16df65675c416d6",
                "9d0d798222d5f40f",
                "eb7b036cc3681e30",
                "cb2e6f58f0c2278c",
                "1faa3cf08125c16f",
                "044da669a0d0e80d",
                "58bacaaf00447ae5",
                "d7d9bb8734e6960c",
                "b01a129f1e9df895",
                "9ee05d6cfd01b4c6",
                "884cf9df73a12b50",
                "faeb8e52c7930ded",
                "e2527a39e8451dd1",
                "f77786e9fecd8f71",
                "673c0853faece626"
            ]
        );
    }
}
