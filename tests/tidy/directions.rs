//! Directions between rooms, as [`rooms`](crate::rooms) lists them: in sources and in manifests.

use crate::manifest::{Dependency, dependencies};
use crate::rooms::{ABSENT, KERNEL, Kind, OWNED, Owned, ROOMS, Room, of_crate};
use crate::source::Reference;
use crate::tree::Tree;
use crate::{File, Finding};

/// Files below `host/` that put the package `witan` together and belong to no room.
const ROOTS: [&str; 2] = ["host/lib.rs", "host/main.rs"];

/// Looks for everything that points in a direction which the table does not list.
pub fn check(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        match tree.room(at) {
            Some(room) => source.all().for_each(|reference| {
                // Paths that begin with something imported are what the import was.
                if !tree.begins_with_import(at, reference) {
                    findings.extend(between(tree, at, room, reference));
                }
                if !tree.is_test(at, reference) {
                    findings.extend(outside(tree, at, &ROOMS[room], reference));
                }
            }),
            None if source.path.starts_with("host/") && !ROOTS.contains(&source.path) => {
                let message = "belongs to no room: add its room to tests/tidy/rooms.rs with what it may use, and to ARCHITECTURE.md";
                findings.push(tree.finding(at, 1, message.to_owned()));
            }
            None => {}
        }
    }
    let manifests = tree.files.iter().filter_map(|file| Some((file, file.path.strip_suffix("/Cargo.toml")?)));
    for (file, folder) in manifests {
        if let Some(room) = ROOMS.iter().find(|room| room.path == folder) {
            findings.extend(dependencies(&file.text).iter().filter_map(|dependency| depends(file, room, dependency)));
        }
    }
    // One finding for each line, whatever it names: the messages differ in no more than that.
    findings.sort();
    findings.dedup_by(|one, other| (&one.path, one.line, subject(one)) == (&other.path, other.line, subject(other)));
    findings
}

/// A message without what is named.
fn subject(finding: &Finding) -> &str {
    finding.message.split('`').next().unwrap_or_default()
}

/// What is wrong with a reference that leads to another room.
fn between(tree: &Tree<'_>, at: usize, from: usize, reference: &Reference<'_>) -> Option<Finding> {
    let to = tree.room_named(at, reference).filter(|to| *to != from)?;
    let (from, to) = (&ROOMS[from], &ROOMS[to]);
    let in_test = tree.is_test(at, reference);
    let allowed =
        from.uses.contains(&to.name) || in_test && (from.kind == Kind::Module || from.tests.contains(&to.name));
    (!allowed).then(|| tree.finding(at, reference.line, not_allowed(from, to.name, &reference.path.join("::"))))
}

fn not_allowed(from: &Room, to: &str, what: &str) -> String {
    format!(
        "{} must not use {to} (`{what}`): it may use {}. Put what it needs behind a port in host/kernel/port, or move this to a room \
         that may use both (ARCHITECTURE.md, tests/tidy/rooms.rs)",
        from.name,
        list(from.uses),
    )
}

fn list(rooms: &[&str]) -> String {
    if rooms.is_empty() { "no other room".to_owned() } else { rooms.join(", ") }
}

/// What is wrong with a reference that leads out of the repository.
fn outside(tree: &Tree<'_>, at: usize, room: &Room, reference: &Reference<'_>) -> Option<Finding> {
    // A name that is declared or imported here is not the crate of that name.
    let path = tree.spelt_out(at, reference);
    if tree.sources[at].declared.iter().any(|declared| declared.name == path[0]) {
        return None;
    }
    let message = OWNED
        .iter()
        .find(|owned| path.starts_with(owned.path) && !owned.rooms.contains(&room.name))
        .map(|owned| owned_by(owned, room))
        .or_else(|| {
            let absent = ABSENT.iter().filter(|absent| absent.rooms.contains(&room.name));
            let named = |paths: &[&[&str]]| paths.iter().any(|absent| path.starts_with(absent));
            let absent = absent.into_iter().find(|absent| named(absent.paths))?;
            Some(format!("{} must not name `{}`: {}", room.name, path.join("::"), absent.instead))
        })?;
    Some(tree.finding(at, reference.line, message))
}

fn owned_by(owned: &Owned, room: &Room) -> String {
    format!(
        "{} must not name `{}`: {}. Only {} may; use what they offer",
        room.name,
        owned.path.join("::"),
        owned.reason,
        owned.rooms.join(", ")
    )
}

/// What is wrong with a dependency of a room that is a crate.
fn depends(file: &File, room: &Room, dependency: &Dependency) -> Option<Finding> {
    let name = dependency.name.as_str();
    let ours = of_crate(name).map(|place| &ROOMS[place]);
    let message = if let Some(other) = ours {
        let allowed = room.uses.contains(&other.name) || dependency.dev && room.tests.contains(&other.name);
        (!allowed && other.name != room.name).then(|| not_allowed(room, other.name, name))
    } else if name.starts_with("witan") {
        Some(format!("{} must not depend on `{name}`: tests/tidy/rooms.rs lists no such crate", room.name))
    } else if room.name == "kernel" && !dependency.dev && !KERNEL.contains(&name) {
        Some(format!("the kernel must not depend on `{name}`: it has only {}", KERNEL.join(", ")))
    } else {
        let owned = OWNED.iter().find(|owned| owned.path == [name] && !owned.rooms.contains(&room.name));
        owned.filter(|_| !dependency.dev || is_heavy(name)).map(|owned| owned_by(owned, room))
    };
    Some(Finding { path: file.path.clone(), line: dependency.line, message: message? })
}

/// Whether tests, too, do without this crate, so that a room's tests compile in no time.
fn is_heavy(name: &str) -> bool {
    ["sqlx", "redis", "wasmtime", "fjall"].contains(&name)
}
