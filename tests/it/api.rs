//! The responses of each call over real sockets: values and their errors, idempotency, siblings, sessions, tenants and nodes.

mod bindings;
mod catalog;
mod cut_off;
mod errors;
mod faults;
mod idempotency;
mod servers;
mod sessions;
mod siblings;
mod values;
