//! The hook asked before every operation.

pub use crate::bindings::consistency_policy::exports::witan::plugin::policy::{
    Answer, Level, Operation, Question, Replica, Shortfall,
};

use crate::{Error, Plugin};

/// Decides how many replicas must answer, by which deadline, when a read is hedged, and what happens if too few answer.
pub trait ConsistencyPolicy: Plugin {
    /// Decides one operation.
    fn decide(&self, question: &Question) -> Result<Answer, Error>;
}

/// Number of replicas that `level` requires, of `replication_factor`.
pub fn required(level: Level, replication_factor: u8) -> u8 {
    match level {
        Level::One => 1,
        Level::Quorum => replication_factor / 2 + 1,
        Level::All => replication_factor,
    }
}

/// The coordinator's own rule: the requested level, the request's deadline, and an error if too few replicas answer.
pub fn native(question: &Question) -> Answer {
    let asked = required(question.level, question.replication_factor);
    let floor = required(question.minimum, question.replication_factor);
    Answer {
        required: asked.max(floor),
        deadline_ms: question.deadline_ms,
        hedge_after_us: None,
        shortfall: Shortfall::Fail,
    }
}
