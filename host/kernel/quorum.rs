//! When an operation is done: state machines that are given the answers of replicas and say what to do next ([`Round`]).
//!
//! A replica is named by its index in the key's preference list (0 is the first clockwise). Every machine counts each
//! replica's first answer only; later ones change nothing, so that a late or repeated answer cannot count twice.

mod asking;
mod collapse;
mod merge;
mod put;
mod read;
mod round;
mod route;
mod stamp;
mod tally;

pub use collapse::{Collapse, collapse};
pub use merge::{EveryAnswer, MergeRound};
pub use put::{Applied, EveryPut, PutRound};
pub use read::{Hedging, ReadRound, Reconciled, reconcile};
pub use round::{Next, PATIENCE_MICROS, Round};
pub use route::Route;
pub use stamp::StampRound;
pub use tally::{Progress, Quorum, Tally};

#[cfg(test)]
mod laws;
