//! The released versions of the WIT, and which one a component implements.

use witan_kernel::hook::Hook;

/// A released version of the package `witan:plugin`. Plugins of all of them are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V0_1,
    V0_2,
}

/// The names of the interfaces of a version.
macro_rules! names {
    ($version:literal) => {
        Names {
            host: concat!("witan:plugin/host@", $version),
            types: concat!("witan:plugin/types@", $version),
            plugin: concat!("witan:plugin/plugin@", $version),
            policy: concat!("witan:plugin/policy@", $version),
            resolver: concat!("witan:plugin/resolver@", $version),
            routing: concat!("witan:plugin/routing@", $version),
        }
    };
}

struct Names {
    host: &'static str,
    types: &'static str,
    plugin: &'static str,
    policy: &'static str,
    resolver: &'static str,
    routing: &'static str,
}

impl Version {
    /// Every version, the newest first.
    pub(crate) const ALL: [Self; 2] = [Self::V0_2, Self::V0_1];
    /// The version for which plugins are written today.
    pub(crate) const NEWEST: Self = Self::V0_2;

    const fn names(self) -> &'static Names {
        match self {
            Self::V0_1 => const { &names!("0.1.0") },
            Self::V0_2 => const { &names!("0.2.0") },
        }
    }

    /// What a plugin of this version may import. Types carry no code.
    pub(crate) const fn imports(self) -> [&'static str; 2] {
        [self.names().host, self.names().types]
    }

    /// The interface that every plugin of this version exports.
    pub(crate) const fn plugin(self) -> &'static str {
        self.names().plugin
    }

    /// The interface that a plugin of this version exports for a hook.
    pub(crate) const fn interface(self, hook: Hook) -> &'static str {
        match hook {
            Hook::ConsistencyPolicy => self.names().policy,
            Hook::ConflictResolver => self.names().resolver,
            Hook::RoutingHook => self.names().routing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    /// The digest of each released folder: SHA-256 of the names and contents of its files, in the order of their names. A released folder
    /// never changes, since components exist that were built from it: what a new plugin needs goes into a folder of the next version.
    const RELEASED: [(&str, &str); 2] = [
        ("0.1.0", "ef2392d500092835cf28f9a4b319091afeae25c5df18ccaf77a562a16775f7ff"),
        ("0.2.0", "65e77400d5713bbf6f7c686dba6ad61d332fd8bee5226c870f24f1c1644483f6"),
    ];

    fn digest(folder: &Path) -> String {
        let files: BTreeMap<_, _> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        let mut hash = Sha256::new();
        for (name, content) in files {
            hash.update(name.as_bytes());
            hash.update(content.len().to_be_bytes());
            hash.update(content);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn released_interfaces_do_not_change() {
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let mut folders: Vec<String> =
            fs::read_dir(&wit).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        folders.sort();
        assert_eq!(folders, RELEASED.map(|(version, _)| version), "each folder is a released version");
        for (version, released) in RELEASED {
            assert_eq!(digest(&wit.join(version)), released, "wit/{version} has changed since it was released");
        }
    }

    #[test]
    fn every_version_names_its_own_interfaces() {
        for (version, (folder, _)) in Version::ALL.into_iter().rev().zip(RELEASED) {
            let names = version.imports().into_iter().chain([version.plugin()]);
            for name in names.chain(Hook::ALL.map(|hook| version.interface(hook))) {
                assert!(name.ends_with(&format!("@{folder}")), "{name} of {folder}");
            }
        }
        assert_eq!(Version::NEWEST, Version::ALL[0]);
    }
}
