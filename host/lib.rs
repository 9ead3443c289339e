//! Witan: a coordinator for Dynamo-style replicated key-value storage whose decisions are plugins.
//!
//! This package holds both edges and the composition; everything below them is a crate of its own. In reading order: [`access`]
//! decides who may do what, [`config`] reads a coordinator's configuration, [`grpc`] and [`console`] are the edges, [`process`] is the
//! running coordinator, [`cli`] the subcommands.
//!
//! Invariants, as absences: only `grpc` turns a failure into a status. Only `process` and `cli` know which implementation stands
//! behind a port.

pub mod access;
pub mod cli;
pub mod config;
pub mod console;
pub mod grpc;
pub mod process;
