//! Integration tests: the binary `witan` as its users run it, over real processes, sockets and disks.
//!
//! Reading order: [`harness`] (processes, clusters, clients), [`access`] (access control), [`api`] (the responses of each call), [`budget`]
//! (the policy zone-budget), [`care`] (listings, repair, deletion of tenants), [`candidates`] (versions of plugins that are tried), [`cli`]
//! (the command line), [`configuration`] (files, the environment, reload, the doctor), [`spans`] (traces), [`dev`] (the whole cluster in
//! one process), [`disks`] (nodes with another disk, or an earlier copy of their own), [`dry_runs`] (how a plugin would answer), [`edges`]
//! (what a call must be), [`failure`] (nodes that hang, vanish, come back, or run out of disk space), [`folders`] (whose a data folder is),
//! [`healing`] (replicas that become level without reads or repairs), [`health`] (disks that fail, and deadlines of operations that wait),
//! [`crash`] (`kill -9` under load), [`damaged`] (damaged stores), [`hostile`] (malicious clients), [`shared`] (several coordinators on
//! PostgreSQL and Redis), [`placement`] (nodes and replication factors that change under load, also while processes are killed),
//! [`plugin_logs`] (what plugins log), [`previous`] (the previous version together with this one), [`tls`] (certificates and secrets on
//! every connection, rotated under load), [`repeated`] (changes whose coordinator was killed before it had recorded them), [`resolvers`]
//! (first-party conflict resolvers, and the pages about them), [`trace`] (no acknowledgement before its sync, observed from the operating
//! system).
//!
//! Every test has its own folders and addresses, so all can run at once, and no process outlives its test.

mod access;
mod api;
mod budget;
mod candidates;
mod care;
mod cli;
mod collected;
mod configuration;
mod crash;
mod damaged;
mod dev;
mod disks;
mod dry_runs;
mod edges;
mod failure;
mod fences;
mod folders;
mod full_store;
mod harness;
mod healing;
mod health;
mod hostile;
mod kit;
mod placement;
mod plugin_logs;
mod previous;
mod pushes;
mod repeated;
mod resolvers;
mod shared;
mod spans;
mod tls;
mod trace;
