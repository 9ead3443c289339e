//! When an operation is done: state machines that are fed what replicas answer and say what to do next.
//!
//! A replica is named by its index in the key's preference list (0 is the first clockwise). Every machine answers each
//! replica's first event only; later ones change nothing, so that a late or repeated answer cannot count twice.

mod collapse;
mod put;
mod read;
mod round;
mod stamp;
mod tally;

pub use collapse::{Collapse, collapse};
pub use put::{PutAttempt, PutNext, PutRound};
pub use read::{ReadNext, ReadRound, Reconciled, reconcile};
pub use round::Round;
pub use stamp::StampRound;
pub use tally::{Progress, Tally};
