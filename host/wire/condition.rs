//! The condition of a node's store, in handshakes, descriptions and unasked state frames.

use witan_kernel::condition::Condition;

use crate::v1::{StoreCondition, StoreState};

/// The capability of a coordinator that understands unasked state frames, and of a node that reports its store's condition.
pub const STORE_STATE: &str = "store-state";

/// Longest reason that is accepted and kept, in bytes: it is shown to operators in one line.
const REASON_BYTES: usize = 400;

/// The wire form of a condition.
pub fn condition_to_wire(condition: &Condition) -> StoreState {
    let kind = match condition {
        Condition::Serving => StoreCondition::Serving,
        Condition::Full => StoreCondition::Full,
        Condition::Failed(_) => StoreCondition::Failed,
    };
    StoreState { condition: kind.into(), reason: shortened(condition.reason()) }
}

/// The condition that a node reports; `None` when it reports none, as nodes of earlier versions do, or one that is not known here.
pub fn condition_from_wire(state: Option<StoreState>) -> Option<Condition> {
    let state = state?;
    match state.condition() {
        StoreCondition::Unspecified => None,
        StoreCondition::Serving => Some(Condition::Serving),
        StoreCondition::Full => Some(Condition::Full),
        StoreCondition::Failed => Some(Condition::Failed(shortened(&state.reason))),
    }
}

fn shortened(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_travels() {
        for condition in [Condition::Serving, Condition::Full, Condition::Failed("sync: I/O error".to_owned())] {
            assert_eq!(condition_from_wire(Some(condition_to_wire(&condition))), Some(condition));
        }
        assert_eq!(condition_from_wire(None), None);
        assert_eq!(condition_from_wire(Some(StoreState { condition: 99, reason: String::new() })), None);
        let long = Condition::Failed("é".repeat(400));
        assert_eq!(condition_to_wire(&long).reason.len(), 400);
    }
}
