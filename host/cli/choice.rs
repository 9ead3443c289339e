//! Flags that choose among the values of a type of the kernel: each value with its spelling, which is the API's too, and with the line that
//! `--help` shows for it.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use witan_kernel::durability::Durability;
use witan_kernel::hook::Hook;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair};
use witan_plugin::binding::OnFault;

/// A type whose values have one spelling.
pub trait Choice: Copy + Send + Sync + 'static {
    /// The spelling in flags and in the API.
    fn spelling(self) -> &'static str;
}

macro_rules! choices {
    ($($name:ty),+) => {
        $(impl Choice for $name {
            fn spelling(self) -> &'static str {
                self.as_str()
            }
        })+
    };
}

choices!(ConflictMode, Durability, Hook, IdempotencyOutage, Level, OnFault, Ordering, ReadRepair);

/// The API's spelling of a choice, "" when none was made: the server then uses its default, or keeps the current setting.
pub fn spelling<T: Choice>(choice: Option<T>) -> String {
    choice.map(T::spelling).unwrap_or_default().to_owned()
}

/// Reads one of `choices`, and shows each with its description in the help.
fn one_of<T: Choice, const N: usize>(choices: [(T, &'static str); N]) -> impl TypedValueParser<Value = T> {
    let shown = choices.map(|(choice, about)| PossibleValue::new(choice.spelling()).help(about));
    PossibleValuesParser::new(shown).try_map(move |text| {
        let found = choices.into_iter().map(|(choice, _)| choice).find(|choice| choice.spelling() == text);
        found.ok_or("is not a possible value")
    })
}

/// A consistency level.
pub fn level() -> impl TypedValueParser<Value = Level> {
    one_of([
        (Level::One, "One replica answers"),
        (Level::Quorum, "More than half of the replicas answer"),
        (Level::All, "Every replica answers"),
    ])
}

/// What happens to concurrent writes.
pub fn conflict_mode() -> impl TypedValueParser<Value = ConflictMode> {
    one_of([
        (ConflictMode::Register, "One value per key, totally ordered: the last write wins"),
        (ConflictMode::Siblings, "Concurrent writes are all kept until a resolver, or a later write, settles them"),
    ])
}

/// How a register's writes are ordered.
pub fn ordering() -> impl TypedValueParser<Value = Ordering> {
    one_of([
        (Ordering::Quorum, "Ask a quorum first: acknowledged writes are ordered whatever the clocks do"),
        (Ordering::Clock, "By the coordinators' clocks alone: saves one round trip, without that promise"),
    ])
}

/// When replicas that a read found stale are repaired.
pub fn read_repair() -> impl TypedValueParser<Value = ReadRepair> {
    one_of([
        (ReadRepair::Async, "After the answer, in the background"),
        (ReadRepair::Blocking, "Before the answer: quorum reads are linearizable"),
    ])
}

/// What requests with an idempotency key do while its store cannot be reached.
pub fn idempotency_outage() -> impl TypedValueParser<Value = IdempotencyOutage> {
    one_of([
        (IdempotencyOutage::Reject, "They fail"),
        (IdempotencyOutage::Proceed, "They are carried out, and a retry may take effect twice"),
    ])
}

/// What an acknowledged write survives.
pub fn durability() -> impl TypedValueParser<Value = Durability> {
    one_of([
        (Durability::Sync, "A power failure: it is synced to disk first"),
        (Durability::Os, "The end of the process, but no power failure: it is handed to the operating system"),
    ])
}

/// What a plugin decides.
pub fn hook() -> impl TypedValueParser<Value = Hook> {
    one_of([
        (Hook::ConsistencyPolicy, "How many replicas must answer, by when, and what happens when too few do"),
        (Hook::ConflictResolver, "What concurrent writes become"),
        (Hook::RoutingHook, "Which partition a key belongs to, and which replicas are asked first"),
    ])
}

/// What decides when the plugin fails.
pub fn on_fault() -> impl TypedValueParser<Value = OnFault> {
    one_of([(OnFault::Native, "The native rule"), (OnFault::Fail, "Nothing: the request fails")])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<P: TypedValueParser<Value: Choice>>(parser: P, text: &str) -> Option<&'static str> {
        let command = clap::Command::new("witan");
        parser.parse_ref(&command, None, text.as_ref()).ok().map(P::Value::spelling)
    }

    fn round_trip<P: TypedValueParser<Value: Choice>>(make: impl Fn() -> P, count: usize) {
        let values: Vec<String> =
            make().possible_values().expect("values").map(|value| value.get_name().to_owned()).collect();
        assert_eq!(values.len(), count);
        for value in &values {
            assert_eq!(read(make(), value), Some(value.as_str()));
        }
        assert_eq!(read(make(), "other"), None);
    }

    #[test]
    fn every_choice_is_read_as_it_is_spelled() {
        round_trip(level, 3);
        round_trip(conflict_mode, 2);
        round_trip(ordering, 2);
        round_trip(read_repair, 2);
        round_trip(idempotency_outage, 2);
        round_trip(durability, Durability::ALL.len());
        round_trip(hook, Hook::ALL.len());
        round_trip(on_fault, 2);
    }

    #[test]
    fn no_choice_is_spelled_as_nothing() {
        assert_eq!(spelling(Some(Level::Quorum)), "quorum");
        assert_eq!(spelling::<Level>(None), "");
    }
}
