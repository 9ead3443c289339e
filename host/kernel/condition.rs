//! The condition of a node's store: what its node reports of it, and what coordinators and operators act on.

/// Whether a store can be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It stores and returns rows.
    Serving,
    /// It returns rows, and stores none until its disk has room again.
    Full,
    /// A read, a write or a sync has failed for this reason. It stays so until the node is started again: an operator has to check the
    /// disk.
    Failed(String),
}

impl Condition {
    /// Its spelling in answers and output.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Full => "full",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it has failed, for people; empty if it has not.
    pub fn reason(&self) -> &str {
        match self {
            Self::Serving | Self::Full => "",
            Self::Failed(reason) => reason,
        }
    }

    /// True when it has failed.
    pub fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// The condition of a store that shows `seen` after this one: a failure is final, and its first reason is the one that matters.
    pub fn then(self, seen: Self) -> Self {
        if self.is_failed() { self } else { seen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_final_and_keeps_its_first_reason() {
        let failed = Condition::Serving.then(Condition::Full).then(Condition::Failed("sync".to_owned()));
        assert_eq!(failed.clone().then(Condition::Serving), failed);
        assert_eq!(failed.then(Condition::Failed("read".to_owned())).reason(), "sync");
        assert_eq!(Condition::Full.then(Condition::Serving), Condition::Serving);
    }
}
