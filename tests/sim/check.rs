//! The checks that every history must pass.

mod linear;
mod regular;
mod standing;

use crate::history::{Operation, Outcome, Place};
use crate::scenario::Scenario;

/// All violations in a history; each starts with the name of the check. `is_collapsed` says whether a resolver may have collapsed a record.
pub(crate) fn all(scenario: &Scenario, operations: &[Operation], is_collapsed: impl Fn(Place) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for (tenant, cast) in scenario.casts.iter().enumerate() {
        for key in 0..cast.keys {
            let place: Place = (tenant, key);
            let of_key: Vec<&Operation> = operations.iter().filter(|operation| operation.place == place).collect();
            violations.extend(honest(place, &of_key));
            if !cast.is_register() {
                let returns = if cast.forgets_names && !scenario.asks {
                    standing::Returns::Unjudged
                } else {
                    standing::Returns::of(is_collapsed(place))
                };
                violations.extend(standing::check(&of_key, returns).map(|what| format!("siblings: {place:?}: {what}")));
                continue;
            }
            if cast.is_linearizable() {
                violations.extend(linear::check(&of_key).map(|what| format!("linearizability: {place:?}: {what}")));
            }
            let rules = regular::Rules { ordering: cast.tenant.ordering, clocks_agree: scenario.clocks_agree };
            violations.extend(regular::check(&of_key, rules).map(|what| format!("order: {place:?}: {what}")));
        }
    }
    violations
}

/// No read returns a write that was reported as not applied, a value that nobody wrote, or a write that started later.
fn honest(place: Place, operations: &[&Operation]) -> Option<String> {
    for read in operations {
        let Outcome::Shown(tags) = &read.outcome else { continue };
        for tag in tags {
            let writer = operations.iter().find(|other| other.tag() == Some(*tag) && !other.is_delete());
            let problem = match writer {
                None => "nobody wrote it",
                Some(writer) if writer.outcome == Outcome::NotApplied => "it was reported as not applied",
                Some(writer) if writer.start > read.end => "it was written later",
                Some(_) => continue,
            };
            return Some(format!("honesty: {place:?}: {tag} was read by client {}, but {problem}", read.client));
        }
    }
    None
}
