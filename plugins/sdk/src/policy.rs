//! The hook asked before every operation.

pub use crate::bindings::consistency_policy::exports::witan::plugin::policy::{
    Answer, Level, Operation, Question, Replica, Shortfall,
};

use crate::{Error, Plugin};

/// Decides how many replicas must answer, until when, when to hedge, and what too few answers mean.
pub trait ConsistencyPolicy: Plugin {
    /// Decides one operation.
    fn decide(&self, question: &Question) -> Result<Answer, Error>;
}

/// Replicas that `level` asks for, of `replication_factor`.
pub fn required(level: Level, replication_factor: u8) -> u8 {
    match level {
        Level::One => 1,
        Level::Quorum => replication_factor / 2 + 1,
        Level::All => replication_factor,
    }
}

/// What the coordinator would do on its own: the level asked for, the request's deadline, and a shortfall fails.
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
