//! Generated from the WIT, one module per released version and world.
#![allow(missing_docs, unreachable_pub, clippy::wildcard_imports, clippy::all, dead_code)]

pub mod v0_1 {
    pub mod policy {
        wasmtime::component::bindgen!({
            path: "../../wit/0.1.0",
            world: "consistency-policy",
            ownership: Borrowing { duplicate_if_necessary: true },
        });
    }

    pub mod resolver {
        wasmtime::component::bindgen!({
            path: "../../wit/0.1.0",
            world: "conflict-resolver",
            ownership: Borrowing { duplicate_if_necessary: true },
            with: {
                "witan:plugin/types": super::policy::witan::plugin::types,
                "witan:plugin/host": super::policy::witan::plugin::host,
            },
        });
    }

    pub mod routing {
        wasmtime::component::bindgen!({
            path: "../../wit/0.1.0",
            world: "routing-hook",
            ownership: Borrowing { duplicate_if_necessary: true },
            with: {
                "witan:plugin/types": super::policy::witan::plugin::types,
                "witan:plugin/host": super::policy::witan::plugin::host,
            },
        });
    }
}

pub mod v0_2 {
    pub mod policy {
        wasmtime::component::bindgen!({
            path: "../../wit/0.2.0",
            world: "consistency-policy",
            ownership: Borrowing { duplicate_if_necessary: true },
        });
    }

    pub mod resolver {
        wasmtime::component::bindgen!({
            path: "../../wit/0.2.0",
            world: "conflict-resolver",
            ownership: Borrowing { duplicate_if_necessary: true },
            with: {
                "witan:plugin/types": super::policy::witan::plugin::types,
                "witan:plugin/host": super::policy::witan::plugin::host,
            },
        });
    }

    pub mod routing {
        wasmtime::component::bindgen!({
            path: "../../wit/0.2.0",
            world: "routing-hook",
            ownership: Borrowing { duplicate_if_necessary: true },
            with: {
                "witan:plugin/types": super::policy::witan::plugin::types,
                "witan:plugin/host": super::policy::witan::plugin::host,
            },
        });
    }
}
