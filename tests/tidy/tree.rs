//! All Rust files together: which module each one is, and which file a path leads to.

use std::collections::HashMap;

use crate::rooms::{self, Kind, PACKAGE, ROOMS};
use crate::source::{Reference, Source};
use crate::{File, Finding};

/// Steps from one re-export to the next that are followed: more than any path here takes, and an end to those in a circle.
const HOPS: usize = 16;

/// A file's place among modules.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Module<'a> {
    /// The crate's name, as paths spell it.
    package: &'a str,
    /// The path within it, empty for its root.
    path: Vec<&'a str>,
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// To an item in this file, by its place in [`Tree::sources`].
    File(usize),
    /// To another crate of this repository without files in the tree, or to its root.
    Package(&'a str),
    /// To a crate that is not of this repository, or to something local.
    Elsewhere,
}

/// Files of a repository.
#[derive(Debug)]
pub struct Tree<'a> {
    /// All of them.
    pub files: &'a [File],
    /// Those in Rust.
    pub sources: Vec<Source<'a>>,
    /// What each source is; `None` for what belongs to no room and is no part of one's crate.
    modules: Vec<Option<Module<'a>>>,
    places: HashMap<Module<'a>, usize>,
    /// Whether only tests compile the whole source.
    tests: Vec<bool>,
}

impl<'a> Tree<'a> {
    /// Reads files and links them.
    pub fn of(files: &'a [File]) -> Self {
        let rust = files.iter().filter(|file| file.path.ends_with(".rs"));
        let sources: Vec<Source<'a>> = rust.map(|file| Source::of(&file.path, &file.text)).collect();
        let modules: Vec<_> = sources.iter().map(|source| module(source.path)).collect();
        let placed = modules.iter().enumerate().filter_map(|(at, module)| Some((module.clone()?, at)));
        let places = placed.collect();
        let mut tree = Self { files, tests: vec![false; sources.len()], sources, modules, places };
        tree.tests = (0..tree.sources.len()).map(|at| tree.is_whole_test(at)).collect();
        tree
    }

    /// Whether only tests compile the reference in the source at `at`.
    pub fn is_test(&self, at: usize, reference: &Reference<'_>) -> bool {
        reference.test || self.tests[at]
    }

    /// The room of the source at `at`.
    pub fn room(&self, at: usize) -> Option<usize> {
        rooms::of(self.sources[at].path)
    }

    /// Whether the module of the source `above` is one around that of the source `below`.
    pub fn is_above(&self, above: usize, below: usize) -> bool {
        let (above, below) = (&self.modules[above], &self.modules[below]);
        let both = above.as_ref().zip(below.as_ref());
        both.is_some_and(|(above, below)| above.package == below.package && below.path.starts_with(&above.path))
    }

    /// A finding in the source at `at`.
    pub fn finding(&self, at: usize, line: usize, message: String) -> Finding {
        Finding { path: self.sources[at].path.to_owned(), line, message }
    }

    /// Whether the file is a test's: below a room's `tests`, or declared for tests only, or within such a module.
    fn is_whole_test(&self, at: usize) -> bool {
        let source = &self.sources[at];
        let below = rooms::of(source.path).map_or("", |room| &source.path[ROOMS[room].path.len()..]);
        if source.is_test() || below.starts_with("/tests/") || below == "/tests.rs" || below.ends_with("/tests.rs") {
            return true;
        }
        let Some(module) = &self.modules[at] else { return false };
        (0..module.path.len()).any(|length| {
            let parent = Module { package: module.package, path: module.path[..length].to_vec() };
            let declared = self.places.get(&parent).map(|parent| &self.sources[*parent].declared);
            declared.is_some_and(|declared| declared.iter().any(|it| it.name == module.path[length] && it.test))
        })
    }

    /// The file that the item of a reference is in, re-exports followed.
    pub fn resolve(&self, at: usize, reference: &Reference<'a>) -> Target<'a> {
        self.follow(at, &reference.path, reference.inline, HOPS, true)
    }

    /// The room that a reference names: the one that re-exports an item, not the one that it is from.
    pub fn room_named(&self, at: usize, reference: &Reference<'a>) -> Option<usize> {
        match self.follow(at, &reference.path, reference.inline, HOPS, false) {
            Target::File(at) => self.room(at),
            Target::Package(package) => rooms::of_crate(package),
            Target::Elsewhere => None,
        }
    }

    /// The whole path of a reference that begins with something imported: `Status::new` is `tonic::Status::new`.
    pub fn spelt_out(&self, at: usize, reference: &Reference<'a>) -> Vec<&'a str> {
        let mut path = reference.path.clone();
        for _ in 0..HOPS {
            match self.imported(at, path[0]) {
                Some(import) if import.path[0] != path[0] => path.splice(..1, import.path.iter().copied()),
                _ => break,
            };
        }
        path
    }

    /// Whether a reference begins with a name that an import gives to something.
    pub fn begins_with_import(&self, at: usize, reference: &Reference<'a>) -> bool {
        self.imported(at, reference.path[0]).is_some_and(|import| import.path[0] != reference.path[0])
    }

    fn imported(&self, at: usize, name: &str) -> Option<&Reference<'a>> {
        self.sources[at].imports.iter().find(|import| import.name == name).map(|import| &import.what)
    }

    fn follow(&self, at: usize, path: &[&'a str], inline: usize, hops: usize, through: bool) -> Target<'a> {
        let (Some(module), Some((first, rest))) = (&self.modules[at], path.split_first()) else {
            return Target::Elsewhere;
        };
        if hops == 0 {
            return Target::Elsewhere;
        }
        match *first {
            "crate" => self.descend(module.package, &[], rest, hops, through),
            "self" => self.descend(module.package, &module.path, rest, hops, through),
            "super" => {
                let supers = path.iter().take_while(|segment| **segment == "super").count();
                let up = supers.saturating_sub(inline).min(module.path.len());
                self.descend(module.package, &module.path[..module.path.len() - up], &path[supers..], hops, through)
            }
            package if is_package(package) => self.descend(package, &[], rest, hops, through),
            local if self.sources[at].declared.iter().any(|declared| declared.name == local) => {
                self.descend(module.package, &module.path, path, hops, through)
            }
            name => match self.imported(at, name) {
                Some(import) if import.path != path => {
                    let whole: Vec<&str> = import.path.iter().chain(rest).copied().collect();
                    self.follow(at, &whole, import.inline, hops - 1, through)
                }
                _ => Target::Elsewhere,
            },
        }
    }

    /// Goes down from a module to the file that an item is in; `through` its re-exports, or only to the file that has it first.
    fn descend(&self, package: &'a str, base: &[&'a str], path: &[&'a str], hops: usize, through: bool) -> Target<'a> {
        let mut module = Module { package, path: base.to_vec() };
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            module.path.push(first);
            if !self.places.contains_key(&module) {
                module.path.pop();
                break;
            }
            rest = after;
        }
        let Some(at) = self.places.get(&module).copied() else { return Target::Package(package) };
        let Some((first, after)) = rest.split_first().filter(|_| through && hops > 0) else { return Target::File(at) };
        let exported = self.sources[at].imports.iter().find(|import| import.public && import.name == *first);
        let Some(exported) = exported else { return Target::File(at) };
        let whole: Vec<&str> = exported.what.path.iter().chain(after).copied().collect();
        match self.follow(at, &whole, exported.what.inline, hops - 1, true) {
            Target::Elsewhere => Target::File(at),
            there => there,
        }
    }
}

/// Whether a path that begins so leads into this repository.
fn is_package(name: &str) -> bool {
    name == PACKAGE || rooms::of_crate(name).is_some()
}

/// The module that a file is. `lib.rs` and `main.rs` are the root of their crate.
fn module(path: &str) -> Option<Module<'_>> {
    let room = rooms::of(path).map(|room| ROOMS[room]);
    let (package, below) = match room.map(|room| (room.kind, room.path)) {
        Some((Kind::Crate(package), folder)) => (package, path[folder.len() + 1..].trim_start_matches("src/")),
        _ => (PACKAGE, path.strip_prefix("host/")?),
    };
    let below = below.strip_suffix(".rs")?;
    let path = if ["lib", "main"].contains(&below) { Vec::new() } else { below.split('/').collect() };
    // The program's file imports from the library of the same package, whose place it must not take.
    let program = package == PACKAGE && below == "main";
    (!program).then_some(Module { package, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Vec<File> {
        files.iter().map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() }).collect()
    }

    /// The file that each path of `host/coordinate/read.rs` leads to.
    fn leads(text: &str) -> Vec<String> {
        let files = files(&[
            ("host/coordinate/read.rs", text),
            ("host/coordinate/lib.rs", "mod read; mod plan; pub use plan::Plan; pub use witan_kernel::Quorum as Q;"),
            ("host/coordinate/plan.rs", ""),
            ("host/kernel/lib.rs", "mod quorum; pub use quorum::*; pub use quorum::Quorum;"),
            ("host/kernel/quorum.rs", ""),
        ]);
        let tree = Tree::of(&files);
        let led = tree.sources[0].all().map(|reference| match tree.resolve(0, reference) {
            Target::File(at) => tree.sources[at].path.to_owned(),
            Target::Package(package) => package.to_owned(),
            Target::Elsewhere => "-".to_owned(),
        });
        led.collect()
    }

    #[test]
    fn paths_lead_to_files_through_reexports() {
        assert_eq!(leads("use crate::Plan;"), ["host/coordinate/plan.rs"]);
        assert_eq!(leads("use super::plan::X;"), ["host/coordinate/plan.rs"]);
        assert_eq!(leads("use super::Nothing;"), ["host/coordinate/lib.rs"]);
        assert_eq!(leads("mod tests { use super::super::Q; }"), ["host/kernel/quorum.rs"]);
        assert_eq!(leads("fn f() { witan_kernel::Quorum::new() }"), ["host/kernel/quorum.rs"]);
        assert_eq!(leads("use witan_store::Store; use std::fmt;"), ["witan_store", "-"]);
        assert_eq!(leads("use witan_kernel::quorum as q; fn f() { q::g() }"), ["host/kernel/quorum.rs"; 2]);
    }

    #[test]
    fn whole_files_are_tests() {
        let files = files(&[
            ("host/grpc.rs", "#[cfg(test)] mod testing; mod usual;"),
            ("host/grpc/testing.rs", ""),
            ("host/grpc/testing/deeper.rs", ""),
            ("host/grpc/usual.rs", ""),
            ("host/kernel/tests/model.rs", ""),
            ("tests/sim/world.rs", ""),
        ]);
        assert_eq!(Tree::of(&files).tests, [false, true, true, false, true, false]);
    }
}
