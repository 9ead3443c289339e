//! The table of rooms: where each one's files are, and which others it may use. ARCHITECTURE.md explains it; a change here is a change
//! of the architecture.

/// A part of the repository with a direction: what it may use is listed, everything else is a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What messages and this table call it.
    pub name: &'static str,
    /// Its folder; of a module also the file `<path>.rs`.
    pub path: &'static str,
    /// How its files are compiled.
    pub kind: Kind,
    /// Rooms that it may use.
    pub uses: &'static [&'static str],
    /// Rooms that its tests may use besides. Tests of modules may use any: they are linked with all of them anyway.
    pub tests: &'static [&'static str],
}

/// How a room is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As a crate of this name: the manifest is checked as well.
    Crate(&'static str),
    /// As a module of the package `witan`.
    Module,
}

/// The package whose modules are rooms.
pub const PACKAGE: &str = "witan";

const fn library(name: &'static str, path: &'static str, package: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, path, kind: Kind::Crate(package), uses, tests: &[] }
}

const fn module(name: &'static str, path: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, path, kind: Kind::Module, uses, tests: &[] }
}

impl Room {
    const fn tests(self, tests: &'static [&'static str]) -> Self {
        Self { tests, ..self }
    }
}

/// Every room, those below first: a room uses only rooms that come before it, so that there can be no circle.
pub const ROOMS: [Room; 28] = [
    library("features", "tests/features", "witan_features", &[]),
    library("kernel", "host/kernel", "witan_kernel", &[]).tests(&["features"]),
    library("wire", "host/wire", "witan_wire", &["kernel"]),
    library("origin", "host/origin", "witan_origin", &[]),
    library("file", "host/file", "witan_file", &[]),
    library("guests", "kit/guests", "witan_guests", &[]),
    library("servers", "tests/servers", "witan_servers", &[]),
    library("net", "host/net", "witan_net", &["file"]).tests(&["servers"]),
    library("memory", "host/memory", "witan_memory", &["kernel"]).tests(&["features"]),
    library("store", "host/store", "witan_store", &["kernel"]).tests(&["memory", "servers"]),
    library("node", "host/node", "witan_node", &["kernel", "wire", "origin", "net"]).tests(&["servers"]),
    library("plugin", "host/plugin", "witan_plugin", &["kernel", "file"]).tests(&["memory"]),
    library("coordinate", "host/coordinate", "witan_coordinate", &["kernel", "origin"]).tests(&["memory", "features"]),
    library("upkeep", "host/upkeep", "witan_upkeep", &["kernel", "origin", "coordinate"])
        .tests(&["memory", "features"]),
    library("peer", "host/peer", "witan_peer", &["kernel", "wire", "origin", "net"]).tests(&["memory"]),
    library("control", "host/control", "witan_control", &["kernel", "origin"]).tests(&["memory", "features"]),
    module("access", "host/access", &["kernel", "wire", "origin", "net"]),
    module("config", "host/config", &["kernel", "file", "net", "access"]),
    module("grpc", "host/grpc", EDGE),
    module("platform", "host/platform", PLATFORM),
    module("console", "host/console", EDGE),
    module("process", "host/process", PROCESS),
    module("cli", "host/cli", CLI),
    library("sim", "tests/sim", "witan_sim", SIMULATION).tests(&["features"]),
    library("kit", "kit", "witan_kit", &["kernel", "file", "plugin", "guests"]),
    library("demo", "examples/demo", "witan_demo", &["kernel", "wire"]),
    library("xtask", "xtask", "xtask", &["servers", "guests"]),
    library("tidy", "tests/tidy", "witan_tidy", &[]),
];

/// Edges decode, call and encode: neither stores nor plugins nor nodes, which they reach through the rooms below.
const EDGE: &[&str] = &["kernel", "wire", "origin", "net", "coordinate", "upkeep", "control", "access", "config"];

/// The plugin platform's edge decodes and encodes as `grpc` does, and is the only one that knows the plugin host.
const PLATFORM: &[&str] = &["kernel", "wire", "control", "access", "grpc", "plugin"];

/// Subcommands are servers, clients and tools: they may use everything but what is for tests.
const CLI: &[&str] = &[
    "kernel",
    "wire",
    "origin",
    "file",
    "net",
    "store",
    "node",
    "plugin",
    "coordinate",
    "upkeep",
    "peer",
    "control",
    "access",
    "config",
    "grpc",
    "platform",
    "console",
    "process",
];

/// The composition root knows every implementation, but neither the command line nor anything that is for tests.
const PROCESS: &[&str] = match CLI.split_last() {
    Some((_process, rest)) => rest,
    None => CLI,
};

/// The simulation runs production code below both edges, over ports in memory.
pub const SIMULATION: &[&str] =
    &["kernel", "wire", "origin", "net", "memory", "node", "coordinate", "upkeep", "peer", "control"];

/// A third-party crate, or an item of one, that only these rooms name outside their tests; of crates, manifests are held to it, too.
#[derive(Debug)]
pub struct Owned {
    /// The path's segments.
    pub path: &'static [&'static str],
    /// Rooms that may name it.
    pub rooms: &'static [&'static str],
    /// What the rule is for.
    pub reason: &'static str,
}

/// What is owned, and by whom: the absences of ARCHITECTURE.md.
pub const OWNED: [Owned; 11] = [
    Owned { path: &["sqlx"], rooms: &["store"], reason: "all SQL is in store" },
    Owned { path: &["redis"], rooms: &["store"], reason: "all of Redis is in store" },
    Owned { path: &["wasmtime"], rooms: &["plugin"], reason: "everything wasmtime is in plugin" },
    Owned {
        path: &["wasmparser"],
        rooms: &["plugin", "guests"],
        reason: "components are made by guests and examined in plugin",
    },
    Owned { path: &["fjall"], rooms: &["node", "store"], reason: "engines are behind ports" },
    Owned { path: &["axum"], rooms: &["features", "grpc", "console"], reason: "HTTP is an edge" },
    Owned { path: &["rustls"], rooms: &["net"], reason: "connections are secured in net" },
    Owned { path: &["jsonwebtoken"], rooms: &["access"], reason: "credentials are verified in access" },
    Owned {
        path: &["clap"],
        rooms: &["config", "cli", "kit", "demo", "xtask"],
        reason: "only programs read a command line",
    },
    Owned {
        path: &["tonic", "Status"],
        rooms: &["wire", "grpc", "platform", "cli", "node", "peer", "demo", "sim"],
        reason: "only grpc and platform turn failures into statuses; tonic's codecs, and so that of wire, return one; node and peer \
                 speak the nodes' protocol, cli and the demo are clients",
    },
    Owned {
        path: &["tonic_types"],
        rooms: &["grpc", "cli", "demo"],
        reason: "error details are written by grpc and read by clients",
    },
];

/// Crates that the kernel may depend on: none brings in a runtime, a clock, randomness or I/O.
pub const KERNEL: [&str; 8] = ["bytes", "crc32fast", "hmac", "sha2", "smallvec", "subtle", "thiserror", "xxhash_rust"];

/// Paths that some rooms must not name outside their tests.
#[derive(Debug)]
pub struct Absent {
    /// The rooms.
    pub rooms: &'static [&'static str],
    /// The paths.
    pub paths: &'static [&'static [&'static str]],
    /// What to do instead.
    pub instead: &'static str,
}

/// What is absent, and where: the world that a room gets through ports.
pub const ABSENT: [Absent; 2] = [
    Absent {
        rooms: &["kernel"],
        paths: &[
            &["std", "env"],
            &["std", "fs"],
            &["std", "io"],
            &["std", "net"],
            &["std", "process"],
            &["std", "thread"],
            &["std", "time", "Instant"],
            &["std", "time", "SystemTime"],
        ],
        instead: "the kernel decides only: take time, randomness and what was read as arguments",
    },
    Absent {
        rooms: &["coordinate", "upkeep", "control"],
        paths: &[
            &["std", "env"],
            &["std", "fs"],
            &["std", "net"],
            &["std", "process"],
            &["std", "thread"],
            &["std", "time", "Instant"],
            &["std", "time", "SystemTime"],
            &["tokio", "fs"],
            &["tokio", "net"],
            &["tokio", "process"],
            &["tokio", "signal"],
        ],
        instead: "the simulation runs this room: take the world through a port (tokio's tasks and timers are allowed)",
    },
];

/// The room of a file, by its place in [`ROOMS`].
pub fn of(path: &str) -> Option<usize> {
    ROOMS.iter().position(|room| {
        let rest = path.strip_prefix(room.path);
        rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs" && room.kind == Kind::Module)
    })
}

/// The room that is the crate of this name, as paths spell it.
pub fn of_crate(name: &str) -> Option<usize> {
    ROOMS.iter().position(|room| matches!(room.kind, Kind::Crate(package) if package == name))
}

/// The room of this name.
pub fn named(name: &str) -> Option<usize> {
    ROOMS.iter().position(|room| room.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_use_only_rooms_that_come_before_them() {
        for (place, room) in ROOMS.iter().enumerate() {
            for used in room.uses.iter().chain(room.tests) {
                let there = named(used);
                assert!(
                    there.is_some_and(|there| there < place),
                    "{} uses {used}, which does not come before it",
                    room.name
                );
            }
        }
    }

    #[test]
    fn rules_name_rooms_that_exist() {
        let owners = OWNED.iter().flat_map(|owned| owned.rooms);
        for room in owners.chain(ABSENT.iter().flat_map(|absent| absent.rooms)) {
            assert!(named(room).is_some(), "{room}");
        }
    }

    #[test]
    fn files_have_rooms() {
        let name = |path| of(path).map(|place| ROOMS[place].name);
        assert_eq!(name("host/store/lib.rs"), Some("store"));
        assert_eq!(name("host/grpc.rs"), Some("grpc"));
        assert_eq!(name("host/grpc/server.rs"), Some("grpc"));
        assert_eq!(name("host/storeroom.rs"), None);
        assert_eq!(name("host/lib.rs"), None);
    }
}
