//! The cluster's secrets.

use witan_kernel::port::{Answer, Changed, SECRETS, Secret, SecretStore};

use super::{MemoryMetadata, State};

impl State {
    fn secrets(&self) -> Vec<Secret> {
        self.secrets.iter().rev().cloned().collect()
    }

    fn add_secret(&mut self, key: [u8; 32]) {
        let id = self.secrets.last().map_or(1, |newest| newest.id + 1);
        self.secrets.push(Secret { id, key });
        if self.secrets.len() > SECRETS {
            self.secrets.remove(0);
        }
        self.changed(Changed::Secrets);
    }
}

impl SecretStore for MemoryMetadata {
    fn secrets(&self, fresh: [u8; 32], _: u64) -> Answer<Vec<Secret>> {
        self.answer(move |state| {
            if state.secrets.is_empty() {
                state.add_secret(fresh);
            }
            Ok(state.secrets())
        })
    }

    fn rotate_secret(&self, fresh: [u8; 32], _: u64) -> Answer<Vec<Secret>> {
        self.answer(move |state| {
            state.add_secret(fresh);
            Ok(state.secrets())
        })
    }
}
