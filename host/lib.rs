//! Witan: a coordinator for Dynamo-style replicated key-value storage whose decisions are plugins.
//!
//! In reading order: [`coordinate`] carries out what the kernel decides, [`peer`] talks to storage nodes, [`catalog`] knows
//! tenants and nodes, [`access`] who may do what, [`config`] what a coordinator is told, [`grpc`] and [`admin`] are the edges, [`cli`] puts it all together.
//!
//! [`origin`] travels with the work: whose request it is, and its trace.
//!
//! Invariants, as absences: `coordinate` knows neither sockets nor databases, nor any clock of its own. `peer` knows nothing
//! of quorums. Only `grpc` knows statuses. Only `cli` knows which implementation stands behind a port.

pub mod access;
pub mod admin;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod coordinate;
pub mod grpc;
pub mod origin;
pub mod peer;
