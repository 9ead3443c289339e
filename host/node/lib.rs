//! The storage node: rows on a disk, what requests do to them, and the server that takes requests in.
//!
//! Reading order:
//!
//! 1. [`engine`]: the port behind which rows lie on a disk, real or simulated.
//! 2. [`row`], [`store`]: how a record lies there, and who the store is.
//! 3. [`batch`]: what requests do, as plain synchronous code; the gate that holds answers back until they are durable.
//! 4. [`scan`]: walks over what is stored, beside the requests.
//! 5. [`driver`]: threads (or tasks, in the simulation) that feed them, and one sync for many.
//! 6. [`server`]: the same over gRPC.
//! 7. [`node`]: a node put together from its configuration.

pub mod batch;
pub mod driver;
pub mod engine;
#[cfg(feature = "fjall")]
pub mod node;
pub mod row;
pub mod scan;
pub mod server;
pub mod store;
