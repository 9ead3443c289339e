//! Text as a configuration: a file, and variables of the environment.

use std::path::PathBuf;
use std::sync::OnceLock;

use witan::config::{Inputs, Loaded};

use crate::Seen;

/// Keys, and what chance does not spell.
pub(super) const WORDS: &[&[u8]] = &[
    b"server: {port: ",
    b"\0WITAN_SERVER__PORT=",
    b"\0WITAN_STORAGE_NODES=a=b:1",
    b"security: {allow_anonymous: true}\n",
    b"database: {url: ",
    b"redis: {addresses: [",
    b"storage_nodes: [{id: a, host: b, port: 1}]\n",
    b"consistency: {read_timeout: ",
    b"&a [*a]",
    b"10s",
    b"64MiB",
    b"!!binary ",
    b"<<: ",
];

/// Nobody may be shown it.
const SECRET: &str = "hidden-7Qx";

/// The file that is read, in memory where there is such a folder.
fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm");
        let folder = if shared.is_dir() { shared } else { std::env::temp_dir() };
        folder.join(format!("witan-fuzz-{}.yaml", std::process::id()))
    })
}

/// An input is the text of a file, then variables as `NAME=VALUE`, each after a zero byte.
pub(super) fn run(input: &[u8]) -> Seen {
    let mut parts = input.split(|byte| *byte == 0);
    std::fs::write(file(), parts.next().unwrap_or_default()).expect("write the file");
    let variable = |part| std::str::from_utf8(part).ok()?.split_once('=');
    let mut environment: Vec<(String, String)> =
        parts.filter_map(variable).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.push(("WITAN_REDIS__PASSWORD".to_owned(), SECRET.to_owned()));
    let loaded =
        Loaded::read(Inputs { file: Some(file().clone()), environment, garbled: Vec::new(), flags: Vec::new() });
    let _ = std::fs::remove_file(file());
    match loaded {
        Err(problems) => {
            assert!(!problems.to_string().contains(SECRET), "{problems}");
            let first = problems
                .all
                .first()
                .map(|problem| problem.key.chars().filter(|c| c.is_ascii_lowercase()).take(24).collect::<String>());
            Seen::of((problems.all.len().min(3), first))
        }
        Ok(loaded) => {
            assert!(!loaded.yaml().contains(SECRET) && !loaded.json().to_string().contains(SECRET));
            assert!(loaded.notes.iter().all(|note| !note.to_string().contains(SECRET)));
            Seen::of((loaded.notes.len().min(4), loaded.settings.storage_nodes.len().min(3)))
        }
    }
}
