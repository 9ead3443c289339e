//! Where the servers' programs are, and as which user they run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders of server packages outside the search path: Debian's, Red Hat's, Homebrew's. A part `*` matches any folder.
const FOLDERS: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/opt/*/bin",
    "/opt/homebrew/bin",
    "/opt/homebrew/opt/*/bin",
    "/home/linuxbrew/.linuxbrew/bin",
];

/// The first of `names` that is found on this machine; the newest one, if folders are named after versions.
///
/// # Panics
/// When there is none; the message says what to do.
pub(crate) fn find(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(FOLDERS.iter().flat_map(|pattern| expand(pattern)));
    let programs = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    let found = programs.into_iter().find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{} is not on this machine; `cargo xtask setup` installs it", names.join(" or ")))
}

/// The folders that match a pattern, highest version first.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (folder, start) = before.rsplit_once('/').unwrap_or(("", before));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort_by_key(|name| std::cmp::Reverse(version(name)));
    names.into_iter().map(|name| Path::new(folder).join(name).join(after.trim_start_matches('/'))).collect()
}

/// The first number in a name.
fn version(name: &str) -> u64 {
    let digits = name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit);
    digits.fold(0, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit.to_digit(10).unwrap_or(0))))
}

/// A user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
}

/// The user for a server that refuses to run as root: the current user, or, if that is root, the user created by the server's package,
/// or else `nobody`.
pub(crate) fn unprivileged(name: &str) -> Option<User> {
    if fs::metadata("/proc/self").map_or(true, |own| own.uid() != 0) {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |wanted: &str| users.lines().find_map(|line| parse_user(line, wanted));
    let found = user(name).or_else(|| user("nobody"));
    Some(found.unwrap_or_else(|| panic!("neither {name} nor nobody is a user of this machine")))
}

fn parse_user(line: &str, wanted: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    match fields[..] {
        [name, _, uid, gid, ..] if name == wanted => Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }),
        _ => None,
    }
}
