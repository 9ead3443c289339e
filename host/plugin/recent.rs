//! The questions that a consistency policy was asked last: what another version is asked before it is bound.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use witan_kernel::hook::{KeptPolicyQuestion, PolicyQuestion};
use witan_kernel::name::Key;
use witan_kernel::sync::lock;

use crate::limit;

/// The last questions, each with the key of its operation, without values. At most one of each millisecond, so that a busy tenant's
/// operations do not notice, and a quiet one's are all here.
#[derive(Default)]
pub(crate) struct Recent {
    /// The tick after the one in which a question was kept last; 0: none was.
    kept_at: AtomicU64,
    questions: Mutex<VecDeque<(Key, KeptPolicyQuestion)>>,
}

impl Recent {
    /// Keeps a question that was asked at `now`, in ticks, if it is the first of its tick.
    pub(crate) fn note(&self, now: u64, key: &Key, question: &PolicyQuestion<'_>) {
        let is_first = self.kept_at.load(Relaxed) != now + 1;
        if !is_first || key.bytes().len() > limit::RECENT_KEY_BYTES {
            return;
        }
        self.kept_at.store(now + 1, Relaxed);
        // A slice would keep all of the client's message in memory.
        let Ok(key) = Key::new(Bytes::copy_from_slice(key.bytes())) else { return };
        let question = question.kept();
        // Whoever is in the way keeps one as well.
        let Ok(mut questions) = self.questions.try_lock() else { return };
        if questions.len() >= limit::RECENT_QUESTIONS {
            questions.pop_front();
        }
        questions.push_back((key, question));
    }

    /// Those that are kept, the newest first.
    pub(crate) fn questions(&self) -> Vec<(Key, KeptPolicyQuestion)> {
        lock(&self.questions).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use witan_kernel::hook::Operation;
    use witan_kernel::tenant::Level;

    fn note(recent: &Recent, now: u64, key: &str) {
        let question = PolicyQuestion {
            operation: Operation::Read,
            level: Level::One,
            minimum: Level::One,
            replication_factor: 3,
            deadline_ms: 1000,
            value_bytes: 0,
            replicas: &[],
            zones: &[],
            zone: None,
        };
        recent.note(now, &Key::new(key.to_owned()).unwrap(), &question);
    }

    fn keys(recent: &Recent) -> Vec<String> {
        recent.questions().into_iter().map(|(key, _)| String::from_utf8(key.bytes().to_vec()).unwrap()).collect()
    }

    #[test]
    fn the_last_questions_are_kept_one_of_each_tick() {
        let recent = Recent::default();
        for (now, key) in [(0, "a"), (0, "b"), (1, "c"), (1, "d"), (0, "e")] {
            note(&recent, now, key);
        }
        assert_eq!(keys(&recent), ["e", "c", "a"]);
        note(&recent, 2, &"x".repeat(limit::RECENT_KEY_BYTES + 1));
        assert_eq!(keys(&recent).len(), 3, "too long to be kept");
        for now in 10..1000 {
            note(&recent, now, &now.to_string());
        }
        assert_eq!((keys(&recent).len(), &*keys(&recent)[0]), (limit::RECENT_QUESTIONS, "999"));
    }
}
