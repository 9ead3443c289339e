//! Witan: a coordinator for Dynamo-style replicated key-value storage whose decisions are plugins.
//!
//! This package holds both edges and the composition; everything below them is in separate crates. In reading order: [`access`]
//! authenticates and authorizes callers, [`config`] reads a coordinator's configuration, [`grpc`] and [`console`] are the edges,
//! [`process`] is the running coordinator, [`cli`] the subcommands.
//!
//! Invariants: only `grpc` turns a failure into a status. Only `process` and `cli` know which implementation a port has.

pub mod access;
pub mod cli;
pub mod config;
pub mod console;
pub mod grpc;
pub mod platform;
pub mod process;
