//! Integration tests: the binary `witan` as its users run it, over real processes, sockets and disks.
//!
//! Reading order: [`harness`] (processes, clusters, clients), [`access`] (who may do what), [`api`] (what each call answers), [`care`] (listings, repair, the end of
//! tenants), [`cli`] (the command line),
//! [`configuration`] (files, the environment, reload, the doctor), [`spans`] (traces), [`dev`] (the whole cluster in one process),
//! [`failure`] (nodes that hang, vanish, come back, or run full), [`crash`] (`kill -9` under load), [`hostile`] (clients that mean
//! harm), [`shared`] (several coordinators on PostgreSQL and Redis), [`previous`] (the version before beside this one), [`tls`] (certificates and secrets on every connection, rotated
//! under load), [`trace`] (no acknowledgement before its sync, seen from the operating system).
//!
//! Every test has folders and addresses of its own, so that all may run at once, and no process outlives its test.

mod access;
mod api;
mod care;
mod cli;
mod configuration;
mod crash;
mod dev;
mod failure;
mod harness;
mod hostile;
mod previous;
mod shared;
mod spans;
mod tls;
mod trace;
