//! A consistency policy: reads ask few replicas, everything else follows the coordinator's own rule.

use witan_plugin_sdk::{ConfigIssue, ConsistencyPolicy, Error, Plugin, Settings, policy};

/// The policy.
#[derive(Debug)]
pub struct FastReads {
    /// Replicas that must answer a read. The tenant's minimum level goes first.
    reads: u8,
}

impl Default for FastReads {
    fn default() -> Self {
        Self { reads: 1 }
    }
}

impl Plugin for FastReads {
    /// Takes lines such as `reads = 2`.
    fn configure(&mut self, configuration: &[u8]) -> Result<(), Vec<ConfigIssue>> {
        let mut settings = Settings::read(configuration);
        settings.take("reads", "a number from 1 to 5", &mut self.reads);
        if !(1..=5).contains(&self.reads) {
            settings.refuse("reads", format!("{} is not a number from 1 to 5", self.reads));
        }
        settings.finish()
    }
}

impl ConsistencyPolicy for FastReads {
    fn decide(&self, question: &policy::Question) -> Result<policy::Answer, Error> {
        let mut answer = policy::native(question);
        if question.operation == policy::Operation::Read {
            answer.required = self.reads.min(question.replication_factor);
        }
        Ok(answer)
    }
}

witan_plugin_sdk::consistency_policy!(FastReads);
