//! A cache of a deterministic policy's answers: equal questions get equal answers, so the policy need not be called again.
//!
//! A call into a guest costs a microsecond or two, a lookup here a twentieth of that. Each cache belongs to one version of one
//! binding for one tenant, and is dropped with it.

use std::sync::Mutex;

use witan_kernel::hook::{PolicyAnswer, PolicyQuestion, ReplicaState};
use witan_kernel::limit::REPLICATION_FACTOR;
use witan_kernel::name::Zone;
use witan_kernel::sync::lock;

/// Entries of the cache, each found by its question's hash. A power of two.
const ENTRIES: usize = 256;
/// Most replicas of a key.
const REPLICAS: usize = *REPLICATION_FACTOR.end() as usize;

/// Cached answers. Bounded: a question with the same hash evicts the one before.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Empty until the first answer is cached.
    entries: Mutex<Vec<Option<Entry>>>,
}

/// A question with its answer. The zones are compared where they are, since nearly all questions are those of entries.
#[derive(Debug, Clone)]
struct Entry {
    question: Question,
    zones: Box<[Option<Zone>]>,
    answer: PolicyAnswer,
}

/// An owned copy of a question without zones; `replicas` beyond the first `known` are unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    words: [u32; 3],
    known: usize,
    replicas: [ReplicaState; REPLICAS],
}

const UNUSED: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

impl Question {
    /// `None` for a question with more replicas than a key can have.
    fn of(asked: &PolicyQuestion<'_>) -> Option<Self> {
        let mut replicas = [UNUSED; REPLICAS];
        replicas.get_mut(..asked.replicas.len())?.copy_from_slice(asked.replicas);
        let small =
            [asked.operation as u8, asked.level as u8, asked.minimum as u8, asked.replication_factor].map(u32::from);
        let small = small.into_iter().fold(0, |word, byte| word << 8 | byte);
        Some(Self { words: [small, asked.deadline_ms, asked.value_bytes], known: asked.replicas.len(), replicas })
    }

    fn index(&self, zones: &[Option<Zone>]) -> usize {
        // Multiplicative hashing (Knuth, TAOCP 6.4): a collision only costs a call.
        let mix = |hash: u64, word: u32| (hash.rotate_left(5) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut hash = self.words.iter().fold(self.known as u64, |hash, word| mix(hash, *word));
        for state in &self.replicas[..self.known] {
            let words = [state.latency_p50_us, state.latency_p99_us, state.in_flight, u32::from(state.reachable)];
            hash = words.into_iter().fold(hash, mix);
        }
        for zone in zones {
            // The end of a name is what tells zones of one region apart.
            let name = zone.as_ref().map_or(&[][..], |zone| zone.as_str().as_bytes());
            let end = name.iter().rev().take(4).fold(name.len() as u32, |word, byte| word << 8 | u32::from(*byte));
            hash = mix(hash, end);
        }
        (hash >> 32) as usize % ENTRIES
    }
}

impl Answers {
    /// The cached answer to an equal question.
    pub(crate) fn get(&self, asked: &PolicyQuestion<'_>) -> Option<PolicyAnswer> {
        let question = Question::of(asked)?;
        let entries = lock(&self.entries);
        let known = entries.get(question.index(asked.zones))?.as_ref()?;
        (known.question == question && *known.zones == *asked.zones).then_some(known.answer)
    }

    /// Caches an answer.
    pub(crate) fn put(&self, asked: &PolicyQuestion<'_>, answer: PolicyAnswer) {
        let Some(question) = Question::of(asked) else { return };
        let mut entries = lock(&self.entries);
        if entries.is_empty() {
            entries.resize(ENTRIES, None);
        }
        entries[question.index(asked.zones)] = Some(Entry { question, zones: asked.zones.into(), answer });
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::hook::{Operation, Shortfall};
    use witan_kernel::tenant::Level;

    use super::*;

    fn question(replicas: &[ReplicaState]) -> PolicyQuestion<'_> {
        PolicyQuestion {
            operation: Operation::Write,
            level: Level::Quorum,
            minimum: Level::One,
            replication_factor: 3,
            deadline_ms: 5000,
            value_bytes: 256,
            replicas,
            zones: &[],
            zone: None,
        }
    }

    fn answer(required: u8) -> PolicyAnswer {
        PolicyAnswer { required, deadline_ms: 1, hedge_after_us: None, shortfall: Shortfall::Fail }
    }

    #[test]
    fn only_an_equal_question_has_the_answer() {
        let answers = Answers::default();
        let busy = ReplicaState { in_flight: 8, ..UNUSED };
        let replicas = [busy, UNUSED, UNUSED];
        assert_eq!(answers.get(&question(&replicas)), None);
        answers.put(&question(&replicas), answer(2));
        assert_eq!(answers.get(&question(&replicas)), Some(answer(2)));
        let moved = [UNUSED, busy, UNUSED];
        let others = [
            question(&moved),
            question(&replicas[..2]),
            PolicyQuestion { operation: Operation::Read, ..question(&replicas) },
            PolicyQuestion { level: Level::One, ..question(&replicas) },
            PolicyQuestion { minimum: Level::All, ..question(&replicas) },
            PolicyQuestion { replication_factor: 5, ..question(&replicas) },
            PolicyQuestion { deadline_ms: 4999, ..question(&replicas) },
            PolicyQuestion { value_bytes: 0, ..question(&replicas) },
        ];
        for other in others {
            assert_eq!(answers.get(&other), None, "{other:?}");
        }
        let zones = ["a", "b"].map(|name| Some(Zone::new(name).unwrap()));
        let zoned = PolicyQuestion { zones: &zones, ..question(&replicas) };
        assert_eq!(answers.get(&zoned), None);
        answers.put(&zoned, answer(1));
        assert_eq!(answers.get(&zoned), Some(answer(1)));
        let swapped = [zones[1].clone(), zones[0].clone()];
        assert_eq!(answers.get(&PolicyQuestion { zones: &swapped, ..zoned }), None);
        assert_eq!(answers.get(&PolicyQuestion { zones: &zones[..1], ..zoned }), None);
        answers.put(&question(&replicas), answer(3));
        assert_eq!(answers.get(&question(&replicas)), Some(answer(3)));
        let six = [UNUSED; 6];
        answers.put(&question(&six), answer(1));
        assert_eq!(answers.get(&question(&six)), None);
    }
}
