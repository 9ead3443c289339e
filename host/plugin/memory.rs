//! What a deterministic policy has answered: equal questions get equal answers, so it need not be asked again.
//!
//! A call into a guest costs a microsecond or two, a look into this table a twentieth of that. The table is of one version of
//! one binding for one tenant, and goes with it.

use std::sync::Mutex;

use witan_kernel::hook::{PolicyAnswer, PolicyQuestion, ReplicaState};

use crate::compile::lock;

/// Answers that are kept, each at the place that its question's hash gives it. A power of two.
const PLACES: usize = 256;
/// Replicas that a key may have.
const REPLICAS: usize = 5;

/// Remembered answers. Bounded; another question of the same place takes it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Empty until the first answer is kept.
    places: Mutex<Vec<Option<(Question, PolicyAnswer)>>>,
}

/// A question of one's own: `replicas` beyond `known` are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    words: [u32; 3],
    known: usize,
    replicas: [ReplicaState; REPLICAS],
}

const NOBODY: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

impl Question {
    /// `None` for a question of more replicas than there can be.
    fn of(asked: &PolicyQuestion<'_>) -> Option<Self> {
        let mut replicas = [NOBODY; REPLICAS];
        replicas.get_mut(..asked.replicas.len())?.copy_from_slice(asked.replicas);
        let small =
            [asked.operation as u8, asked.level as u8, asked.minimum as u8, asked.replication_factor].map(u32::from);
        let small = small.into_iter().fold(0, |word, byte| word << 8 | byte);
        Some(Self { words: [small, asked.deadline_ms, asked.value_bytes], known: asked.replicas.len(), replicas })
    }

    fn place(&self) -> usize {
        // Multiplicative hashing (Knuth, TAOCP 6.4): collisions only cost a call.
        let mix = |hash: u64, word: u32| (hash.rotate_left(5) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut hash = self.words.iter().fold(self.known as u64, |hash, word| mix(hash, *word));
        for state in &self.replicas[..self.known] {
            let words = [state.latency_p50_us, state.latency_p99_us, state.in_flight, u32::from(state.reachable)];
            hash = words.into_iter().fold(hash, mix);
        }
        (hash >> 32) as usize % PLACES
    }
}

impl Memory {
    /// What was answered to an equal question.
    pub(crate) fn answer(&self, asked: &PolicyQuestion<'_>) -> Option<PolicyAnswer> {
        let question = Question::of(asked)?;
        let places = lock(&self.places);
        let (known, answer) = places.get(question.place())?.as_ref()?;
        (*known == question).then_some(*answer)
    }

    /// Keeps an answer.
    pub(crate) fn keep(&self, asked: &PolicyQuestion<'_>, answer: PolicyAnswer) {
        let Some(question) = Question::of(asked) else { return };
        let mut places = lock(&self.places);
        if places.is_empty() {
            places.resize(PLACES, None);
        }
        places[question.place()] = Some((question, answer));
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
        }
    }

    fn answer(required: u8) -> PolicyAnswer {
        PolicyAnswer { required, deadline_ms: 1, hedge_after_us: None, shortfall: Shortfall::Fail }
    }

    #[test]
    fn only_an_equal_question_has_the_answer() {
        let memory = Memory::default();
        let busy = ReplicaState { in_flight: 8, ..NOBODY };
        let replicas = [busy, NOBODY, NOBODY];
        assert_eq!(memory.answer(&question(&replicas)), None);
        memory.keep(&question(&replicas), answer(2));
        assert_eq!(memory.answer(&question(&replicas)), Some(answer(2)));
        let moved = [NOBODY, busy, NOBODY];
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
            assert_eq!(memory.answer(&other), None, "{other:?}");
        }
        memory.keep(&question(&replicas), answer(3));
        assert_eq!(memory.answer(&question(&replicas)), Some(answer(3)));
        let six = [NOBODY; 6];
        memory.keep(&question(&six), answer(1));
        assert_eq!(memory.answer(&question(&six)), None);
    }
}
