//! Each check with made-up sources.

use super::*;

/// A tree of these files, and what `check` finds in it, a line for each.
fn found(check: Check, files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<File> =
        files.iter().map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
    check(&Tree::of(&files)).iter().map(Finding::to_string).collect()
}

/// Asserts that there is one finding, which begins so.
fn one(check: Check, files: &[(&str, &str)], start: &str) {
    let found = found(check, files);
    assert!(found.len() == 1 && found[0].starts_with(start), "{found:#?}");
}

fn none(check: Check, files: &[(&str, &str)]) {
    assert_eq!(found(check, files), [""; 0]);
}

#[test]
fn a_use_of_store_in_coordinate_is_found() {
    let check = directions::check;
    let used = "//! Reads.\n\nuse witan_kernel::port::Replica;\nuse witan_store::metadata::Metadata;\n";
    one(check, &[("host/coordinate/read.rs", used)], "host/coordinate/read.rs:4: coordinate must not use store");
    let spelt = "fn f() {\n    select! { x = witan_store::open() => x }\n}";
    one(check, &[("host/coordinate/read.rs", spelt)], "host/coordinate/read.rs:2: coordinate must not use store");
    let listed = "[dependencies]\nwitan-kernel.workspace = true\nwitan-store.workspace = true\n";
    one(
        check,
        &[("host/coordinate/Cargo.toml", listed)],
        "host/coordinate/Cargo.toml:3: coordinate must not use store",
    );
    // Nor in its tests, which would have to be linked with a database.
    let test = "#[cfg(test)]\nmod tests {\n    use witan_store::metadata::Metadata;\n}";
    one(check, &[("host/coordinate/read.rs", test)], "host/coordinate/read.rs:3: coordinate must not use store");
}

#[test]
fn allowed_directions_are_not_found() {
    none(
        directions::check,
        &[
            ("host/upkeep/sweep.rs", "use witan_coordinate::Exchange; use witan_kernel::port; use tokio::time::sleep;"),
            (
                "host/upkeep/Cargo.toml",
                "[dependencies]\nwitan-coordinate.workspace = true\n[dev-dependencies]\nwitan-memory.workspace = true\n",
            ),
            ("host/grpc/server.rs", "use crate::access::Caller; use tonic::{Request, Status};"),
            ("host/cli/doctor.rs", "mod redis; fn f() { redis::check() }"),
            ("host/lib.rs", "pub mod cli; pub use cli::main;"),
        ],
    );
}

#[test]
fn directions_between_modules_are_found_however_they_are_spelt() {
    let tree = |text| {
        [
            ("host/lib.rs", "pub mod access; pub mod grpc; pub mod cli;"),
            ("host/grpc.rs", "pub mod server;"),
            ("host/cli.rs", ""),
            ("host/access/token.rs", text),
        ]
    };
    let start = "host/access/token.rs:1: access must not use grpc";
    one(directions::check, &tree("use crate::{grpc::server, origin};"), start);
    one(directions::check, &tree("use super::super::grpc;"), start);
    one(directions::check, &tree("fn f(x: &crate::grpc::server::S) {}"), start);
    one(directions::check, &tree("use witan::grpc as edge; fn f() { edge::serve() }"), start);
    none(directions::check, &tree("#[cfg(test)] mod tests { use crate::grpc::server; }"));
}

#[test]
fn what_only_one_room_may_name_is_found_elsewhere() {
    let check = directions::check;
    one(
        check,
        &[("host/control/lib.rs", "fn f() -> sqlx::Result<()> {}")],
        "host/control/lib.rs:1: control must not name `sqlx`",
    );
    let imported = "use tonic as rpc;\nfn f() -> Result<(), rpc::Status> {}";
    one(
        check,
        &[("host/process/start.rs", imported)],
        "host/process/start.rs:2: process must not name `tonic::Status`",
    );
    let heavy = "[dev-dependencies]\nwasmtime.workspace = true\n";
    one(check, &[("tests/sim/Cargo.toml", heavy)], "tests/sim/Cargo.toml:2: sim must not name `wasmtime`");
    let clock = "use std::time::{Duration, Instant};";
    one(check, &[("host/kernel/ring.rs", clock)], "host/kernel/ring.rs:1: kernel must not name `std::time::Instant`");
    let runtime = "[dependencies]\nbytes.workspace = true\ntokio.workspace = true\n";
    one(
        check,
        &[("host/kernel/Cargo.toml", runtime)],
        "host/kernel/Cargo.toml:3: the kernel must not depend on `tokio`",
    );
}

#[test]
fn files_without_a_room_are_found() {
    one(directions::check, &[("host/helpers/lib.rs", "")], "host/helpers/lib.rs:1: belongs to no room");
    none(directions::check, &[("tests/it/main.rs", "use witan_store::Store;"), ("benches/x.rs", "use sqlx::Any;")]);
}

#[test]
fn a_circle_between_two_rooms_is_found() {
    let mut files = vec![
        ("host/access.rs", "use crate::config::Keys;\npub struct Caller;"),
        ("host/config.rs", "pub struct Keys;\nfn f(caller: &crate::access::Caller) {}"),
    ];
    let start = "host/access.rs:1: rooms use each other in a circle: access uses config at host/access.rs:1, config uses access at";
    one(circles::rooms, &files, start);
    files[1].1 = "pub struct Keys;\n#[cfg(test)]\nmod tests { use crate::access::Caller; }";
    none(circles::rooms, &files);
}

#[test]
fn a_circle_over_three_rooms_and_several_files_is_found() {
    let files = [
        ("host/upkeep/lib.rs", "mod sweep;"),
        ("host/upkeep/sweep.rs", "use witan_coordinate::read;"),
        ("host/coordinate/lib.rs", "mod plan; pub use plan::read;"),
        ("host/coordinate/plan.rs", "use witan_control::Catalog;"),
        ("host/control/lib.rs", "fn f() { witan_upkeep::sweep::start() }"),
    ];
    assert_eq!(found(circles::rooms, &files).len(), 1);
}

#[test]
fn a_circle_of_files_within_a_room_is_found() {
    let files = [
        ("host/kernel/lib.rs", "mod siblings; mod replica; pub use siblings::Write; pub use replica::Message;"),
        ("host/kernel/siblings.rs", "use crate::Message;\npub struct Write;"),
        ("host/kernel/replica.rs", "pub struct Message(crate::siblings::Write);"),
    ];
    let found = found(circles::files, &files);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("siblings.rs -> host/kernel/replica.rs -> host/kernel/siblings.rs"), "{found:#?}");
    none(circles::files, &[files[0], files[1], ("host/kernel/replica.rs", "pub struct Message(u8);")]);
    let nested = [
        ("host/kernel/record.rs", "mod codec; fn f() { codec::encode() }"),
        ("host/kernel/record/codec.rs", "use super::Record;"),
    ];
    none(circles::files, &nested);
}

#[test]
fn chance_is_found_in_what_the_simulation_runs() {
    let chosen = "fn f() {\n    tokio::select! {\n        a = b => {}\n    }\n}";
    one(chance::check, &[("host/peer/lane.rs", chosen)], "host/peer/lane.rs:2: `select!` draws which branch");
    none(
        chance::check,
        &[("host/cli/a.rs", chosen), ("host/peer/lane.rs", "fn f() { select! { biased; a = b => {} } }")],
    );
    one(chance::check, &[("host/peer/lib.rs", "mod lane;")], "host/peer/lib.rs:1: the simulation runs this room");
    let denied = "#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]\nmod lane;";
    none(chance::check, &[("host/peer/lib.rs", denied), ("host/plugin/lib.rs", "mod a;")]);
}

#[test]
fn a_file_of_700_lines_is_found() {
    let text = |lines| "fn f() {}\n".repeat(lines);
    let start = "host/kernel/ring.rs:700: has 700 lines, 100 too many";
    one(size::files, &[("host/kernel/ring.rs", &text(700))], start);
    none(size::files, &[("host/kernel/ring.rs", &text(600)), ("README.md", &text(700))]);
}

#[test]
fn a_long_function_is_found() {
    let text = |lines| format!("impl A {{\n    fn long(&self) {{\n{}    }}\n}}", "        1;\n".repeat(lines));
    one(
        size::functions,
        &[("xtask/src/ci.rs", &text(81))],
        "xtask/src/ci.rs:2: the body of `long` has 81 lines, 1 too many",
    );
    none(size::functions, &[("xtask/src/ci.rs", &text(80))]);
}

#[test]
fn a_long_line_is_found() {
    let text = |columns: usize| format!("fn f() {{}}\n// {}\n", "ü".repeat(columns - 3));
    one(size::lines, &[("a.rs", &text(141))], "a.rs:2: has 141 columns, 1 too many");
    none(size::lines, &[("a.rs", &text(140)), ("a.md", &text(200))]);
}

#[test]
fn strings_as_errors_are_found_where_other_rooms_see_them() {
    let check = items::strings_as_errors;
    let offered = "pub async fn parse(x: &str) -> Result<Vec<(u8, u8)>, String> { todo() }";
    one(check, &[("host/plugin/binding.rs", offered)], "host/plugin/binding.rs:1: `parse` fails with a String");
    let declared = "pub trait Host {\n    fn load(&self) -> impl Future<Output = Result<(), String>>;\n}";
    one(check, &[("host/plugin/binding.rs", declared)], "host/plugin/binding.rs:2: `load` fails");
    let restricted = "pub(crate) fn parse() -> Result<(), String> { f() }";
    one(check, &[("host/grpc/convert.rs", restricted)], "host/grpc/convert.rs:1: `parse` fails");
    none(check, &[("host/plugin/binding.rs", restricted)]);
    // Nobody uses the command line's functions.
    none(check, &[("host/cli/args.rs", restricted), ("benches/x.rs", offered)]);
    none(
        check,
        &[(
            "host/plugin/binding.rs",
            "fn f() -> Result<(), String> {}\npub fn g(x: String) -> Result<String, Error> {}",
        )],
    );
}

#[test]
fn errors_that_say_their_source_twice_are_found() {
    let check = items::sentences_said_twice;
    let found = "host/a.rs:2: the text of this error contains its source";
    one(
        check,
        &[("host/a.rs", "enum E {\n    #[error(\"open: {0}\")]\n    /// Doc.\n    Io(#[from] io::Error),\n}")],
        found,
    );
    one(
        check,
        &[(
            "host/a.rs",
            "enum E {\n    #[error(\"open {a}: {source:?}\")]\n    Io { a: Vec<(u8, u8)>, source: E },\n}",
        )],
        found,
    );
    one(check, &[("host/a.rs", "enum E {\n    #[error(\"open: {why}\")]\n    Io { #[source] why: E },\n}")], found);
    one(
        check,
        &[("host/a.rs", "#[derive(Error)]\n#[error(\"open: {0}\")]\npub(crate) struct E(#[from] pub(crate) F);")],
        found,
    );
    one(check, &[("host/a.rs", "enum E {\n    #[error(\"open {0}: {1}\")]\n    Io(A, #[source] B),\n}")], found);
    none(
        check,
        &[
            (
                "host/a.rs",
                "enum E {\n    #[error(transparent)]\n    Io(#[from] E),\n    #[error(\"no\")]\n    No(#[from] E),\n}",
            ),
            (
                "host/b.rs",
                "enum E {\n    #[error(\"open {0}\")]\n    Io(A, #[source] B),\n    #[error(\"{cause}\")]\n    C { cause: E },\n}",
            ),
            ("host/c.rs", "enum E {\n    #[error(\"{0}\")]\n    A,\n    B(#[from] F),\n}"),
        ],
    );
}

#[test]
fn constants_without_a_reason_are_found() {
    let check = items::constants;
    one(check, &[("a.rs", "/// Limit.\npub const LIMIT: usize = 1;")], "a.rs:2: `LIMIT` does not say why");
    let documented =
        "/// Bytes of a page: what one frame of a lane carries.\n#[allow(dead_code)]\npub const PAGE: usize = 1;";
    none(check, &[("a.rs", documented), ("b.rs", "pub const fn f() {} const X: u8 = 1;")]);
}

#[test]
fn dialect_is_found() {
    one(dialect::check, &[("docs/a.md", "What a node is told.")], "docs/a.md:1: `told`: write reported");
    none(dialect::check, &[("tests/tidy/a.rs", "// told")]);
}

#[test]
fn ratchets_hold_in_both_directions() {
    let files = [File { path: "docs/a.md".to_owned(), text: "It is told.".to_owned() }];
    let tree = Tree::of(&files);
    assert_eq!(judge(&tree, &[("dialect", 1)]), [""; 0]);
    let above = judge(&tree, &[("dialect", 0)]);
    assert!(above[0].starts_with("dialect: 1 findings, 0 tolerated. Resolve"), "{above:?}");
    assert!(above[0].contains("docs/a.md:1"), "{above:?}");
    let below = judge(&tree, &[("dialect", 2)]);
    assert!(below[0].contains("Set `dialect` to 1 in tests/tidy/ratchets.rs"), "{below:?}");
}

#[test]
fn every_check_has_a_ratchet() {
    assert_eq!(CHECKS.map(|(name, _)| name), ratchets::RATCHETS.map(|(name, _)| name));
}
