//! The cluster's secrets.

use witan_kernel::name::Era;
use witan_kernel::port::{Answer, Changed, SECRETS, Secret, SecretStore, Secrets};

use super::{MemoryMetadata, State};

impl State {
    fn secrets(&self) -> Secrets {
        Secrets { era: self.era, keys: self.secrets.iter().rev().cloned().collect() }
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
    fn secrets(&self, fresh: [u8; 32], _: u64) -> Answer<Secrets> {
        self.answer(move |state| {
            if state.secrets.is_empty() {
                state.add_secret(fresh);
            }
            Ok(state.secrets())
        })
    }

    fn rotate_secret(&self, fresh: [u8; 32], _: u64) -> Answer<Secrets> {
        self.answer(move |state| {
            state.add_secret(fresh);
            Ok(state.secrets())
        })
    }

    fn begin_era(&self, era: Era, fresh: [u8; 32], above: u64, _: u64) -> Answer<()> {
        self.answer(move |state| {
            state.era = era;
            state.revision = state.revision.max(above);
            state.add_secret(fresh);
            let newest = state.secrets.split_off(state.secrets.len() - 1);
            state.secrets = newest;
            state.forget_commits();
            Ok(())
        })
    }
}
