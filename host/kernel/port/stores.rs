//! The life of stores, as rules that every implementation of the metadata store applies to what it has on record.
//!
//! A node has one store on record, which is used for everything. A repair admits another one in its place and fills it; then the new
//! one goes on record, and the old one is retired in the same step. If the old one comes back before that, it is simply the one on
//! record, and the new one is not used any more.

use super::{Met, StoreError, StoreOnRecord, StoreState};
use crate::fault::Fault;
use crate::name::{NodeId, StoreId};
use crate::scan::Trust;

/// What an implementation has to write after it has met a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// Nothing.
    Known,
    /// The store goes on record: the node has reported none before.
    First,
    /// The store on record is back: the one that was admitted in its place is merely [`StoreState::Reported`] again.
    Back,
    /// The store is now [`StoreState::SetBack`].
    SetBack,
}

/// Decides what `store` may be used for, which node `id` has reported with commit number `commit`; `before` was known of it before the
/// node was asked. `on_record` is the node's store on record, `all` are all stores that the metadata store knows.
pub fn meet(
    id: &NodeId,
    on_record: Option<StoreId>,
    store: StoreId,
    (commit, before): (u64, u64),
    all: &[StoreOnRecord],
) -> (Met, Meeting) {
    let known = all.iter().find(|known| known.store == store);
    let (state, of) = known.map_or((StoreState::Reported, id), |known| (known.state, &known.node));
    let highest = known.map_or(0, |known| known.commit);
    let shown = if Fault::SetBackStoreUsed.is_on() { 0 } else { highest };
    let met = |trust, state| Met { trust, on_record: on_record.unwrap_or(store), state, commit: shown };
    let is_out = match state {
        StoreState::Retired => !Fault::RetiredStoreUsed.is_on(),
        StoreState::SetBack => true,
        StoreState::Reported | StoreState::Filling => of != id,
    };
    if is_out {
        // Whatever it has committed decides nothing.
        return (Met { commit: 0, ..met(Trust::Unadmitted, state) }, Meeting::Known);
    }
    if commit < before && !Fault::SetBackStoreUsed.is_on() {
        return (met(Trust::Unadmitted, StoreState::SetBack), Meeting::SetBack);
    }
    if commit < highest && !Fault::SetBackStoreUsed.is_on() {
        return (met(Trust::Unadmitted, state), Meeting::Known);
    }
    match on_record {
        None => (met(Trust::Whole, state), Meeting::First),
        Some(own) if own == store || state == StoreState::Retired => {
            let other_admitted = all.iter().any(|other| other.node == *id && other.state == StoreState::Filling);
            (met(Trust::Whole, state), if other_admitted { Meeting::Back } else { Meeting::Known })
        }
        Some(_) if state == StoreState::Filling => (met(Trust::Filling, state), Meeting::Known),
        Some(_) => (met(Trust::Unadmitted, state), Meeting::Known),
    }
}

/// Checks that `store` may be admitted in place of `from`, the store of node `id` that is expected to be `on_record`.
pub fn admits(
    id: &NodeId,
    on_record: Option<StoreId>,
    from: StoreId,
    store: StoreId,
    all: &[StoreOnRecord],
) -> Result<(), StoreError> {
    if on_record != Some(from) {
        return Err(other_store(id, from));
    }
    let refused = |why: &str| {
        let remedy = "stop the node, move its folder aside, start it with an empty one, and repeat the repair";
        Err(StoreError::Refused(format!("the store {store} of storage node {id} {why}; {remedy}")))
    };
    match all.iter().find(|known| known.store == store) {
        Some(known) if known.node != *id => refused(&format!("is that of node {}: was its folder copied?", known.node)),
        Some(known) if known.state == StoreState::Retired => refused("was replaced before, and may lack later writes"),
        Some(known) if known.state == StoreState::SetBack => refused("was set back, and may repeat events"),
        // It is on record, and was set back only as far as the caller knew.
        Some(_) | None if store == from => Err(other_store(id, from)),
        Some(_) | None => Ok(()),
    }
}

/// Decides whether the admitted store `to` replaces `from`, the store of node `id` that is expected to be `on_record`. False when there
/// is nothing to do.
pub fn replaces(
    id: &NodeId,
    on_record: Option<StoreId>,
    from: StoreId,
    to: StoreId,
    all: &[StoreOnRecord],
) -> Result<bool, StoreError> {
    if on_record == Some(to) {
        return Ok(false);
    }
    if on_record != Some(from) {
        return Err(other_store(id, from));
    }
    let is_filling = |known: &&StoreOnRecord| known.node == *id && known.state == StoreState::Filling;
    if all.iter().filter(is_filling).all(|known| known.store != to) {
        let why = format!("the store {to} of storage node {id} is not admitted any more; repeat the repair");
        return Err(StoreError::Conflict(why));
    }
    Ok(true)
}

fn other_store(id: &NodeId, from: StoreId) -> StoreError {
    StoreError::Conflict(format!(
        "storage node {id} has another store on record than {from}; look again, and repeat the repair"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn known(store: u8, of: &str, state: StoreState, commit: u64) -> StoreOnRecord {
        StoreOnRecord { store: StoreId([store; 16]), node: node(of), state, commit, keys: 0 }
    }

    /// Node n1, whose store on record is 1 if `all` says so, reports this store.
    fn met(store: u8, commit: u64, all: &[StoreOnRecord]) -> (Trust, Meeting) {
        let highest = all.iter().find(|known| known.store.0[0] == store).map_or(0, |known| known.commit);
        asked_after(store, commit, highest, all)
    }

    fn asked_after(store: u8, commit: u64, before: u64, all: &[StoreOnRecord]) -> (Trust, Meeting) {
        let on_record = (!all.is_empty()).then_some(StoreId([1; 16]));
        let (met, meeting) = meet(&node("n1"), on_record, StoreId([store; 16]), (commit, before), all);
        let suspect = met.is_suspect(commit);
        assert!(!suspect || (met.trust, meeting) == (Trust::Unadmitted, Meeting::Known));
        (met.trust, meeting)
    }

    #[test]
    fn a_commit_that_was_recorded_after_the_node_had_answered_proves_nothing() {
        let all = [known(1, "n1", StoreState::Reported, 7)];
        assert_eq!(asked_after(1, 6, 5, &all), (Trust::Unadmitted, Meeting::Known), "ask again");
        assert_eq!(asked_after(1, 6, 7, &all), (Trust::Unadmitted, Meeting::SetBack));
        assert_eq!(asked_after(1, 7, 7, &all), (Trust::Whole, Meeting::Known));
    }

    #[test]
    fn a_copy_of_another_nodes_store_is_recognized_whatever_it_has_committed() {
        let all = [known(1, "n1", StoreState::Reported, 7), known(2, "n2", StoreState::Reported, 1000)];
        let (met, meeting) = meet(&node("n1"), Some(StoreId([1; 16])), StoreId([2; 16]), (900, 0), &all);
        assert_eq!((met.trust, meeting, met.is_suspect(900)), (Trust::Unadmitted, Meeting::Known, false));
    }

    #[test]
    fn only_the_store_on_record_is_whole() {
        let first = known(1, "n1", StoreState::Reported, 7);
        assert_eq!(met(1, 0, &[]), (Trust::Whole, Meeting::First));
        let all = [first.clone()];
        assert_eq!(met(1, 7, &all), (Trust::Whole, Meeting::Known));
        assert_eq!(met(2, 0, &all), (Trust::Unadmitted, Meeting::Known), "nobody has admitted it");
        let all = [first.clone(), known(2, "n1", StoreState::Filling, 0)];
        assert_eq!(met(2, 0, &all), (Trust::Filling, Meeting::Known));
        assert_eq!(met(3, 0, &all), (Trust::Unadmitted, Meeting::Known));
        assert_eq!(met(1, 7, &all), (Trust::Whole, Meeting::Back), "the old disk is back");
        assert_eq!(met(4, 0, &[first, known(4, "n2", StoreState::Reported, 0)]).0, Trust::Unadmitted, "another node's");
    }

    #[test]
    fn what_was_replaced_or_set_back_is_never_used_again() {
        let all = [known(1, "n1", StoreState::Reported, 7), known(2, "n1", StoreState::Retired, 3)];
        assert_eq!(met(2, 9, &all), (Trust::Unadmitted, Meeting::Known));
        assert_eq!(met(1, 6, &all), (Trust::Unadmitted, Meeting::SetBack));
        assert_eq!(met(1, 9, &[known(1, "n1", StoreState::SetBack, 7)]), (Trust::Unadmitted, Meeting::Known));
        let filling = [known(1, "n1", StoreState::Reported, 7), known(2, "n1", StoreState::Filling, 5)];
        assert_eq!(met(2, 4, &filling), (Trust::Unadmitted, Meeting::SetBack));
    }

    #[test]
    fn a_store_is_admitted_and_replaces_in_order() {
        let (id, one, two) = (node("n1"), StoreId([1; 16]), StoreId([2; 16]));
        let own = known(1, "n1", StoreState::Reported, 0);
        let admitted = |all: &[StoreOnRecord]| admits(&id, Some(one), one, two, all);
        assert_eq!(admitted(&[]), Ok(()));
        assert_eq!(admitted(&[own.clone(), known(2, "n1", StoreState::Reported, 0)]), Ok(()));
        for other in [known(2, "n2", StoreState::Reported, 0), known(2, "n1", StoreState::Retired, 0)] {
            assert!(matches!(admitted(&[own.clone(), other]), Err(StoreError::Refused(_))));
        }
        assert!(matches!(admitted(&[known(2, "n1", StoreState::SetBack, 0)]), Err(StoreError::Refused(_))));
        assert!(matches!(admits(&id, Some(two), one, two, &[]), Err(StoreError::Conflict(_))));
        assert!(matches!(admits(&id, Some(one), one, one, &[]), Err(StoreError::Conflict(_))));

        let filling = [own.clone(), known(2, "n1", StoreState::Filling, 0)];
        assert_eq!(replaces(&id, Some(one), one, two, &filling), Ok(true));
        assert_eq!(replaces(&id, Some(two), one, two, std::slice::from_ref(&own)), Ok(false), "it has happened");
        let merely_reported = known(2, "n1", StoreState::Reported, 0);
        let of_another_node = known(2, "n2", StoreState::Filling, 0);
        let not_admitted = [vec![own.clone()], vec![own.clone(), merely_reported], vec![own, of_another_node]];
        for all in not_admitted {
            assert!(matches!(replaces(&id, Some(one), one, two, &all), Err(StoreError::Conflict(_))), "{all:?}");
        }
        assert!(matches!(replaces(&id, Some(StoreId([3; 16])), one, two, &filling), Err(StoreError::Conflict(_))));
    }
}
