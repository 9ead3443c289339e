//! The metadata store on SQL: tenants, storage nodes, coordinators, plugin artifacts and bindings, API tokens, secrets.
//!
//! The ports and their types are [`witan_kernel::port`]'s. Every operation runs in a task of its own and to its end once it has
//! started: a caller that stops waiting does not stop it.

mod migrations;
mod operations;
mod postgres;
mod sql;
mod sqlite;

pub use postgres::{PostgresConfig, PostgresDurability, PostgresFacts, PostgresMetadata, examine};
pub use sqlite::SqliteMetadata;
