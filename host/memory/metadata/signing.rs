//! Keys with which plugins are signed.

use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, SIGNING_KEYS, SigningKey, SigningKeyStore, rules};

use super::MemoryMetadata;

impl SigningKeyStore for MemoryMetadata {
    fn add_signing_key(&self, key: SigningKey) -> Answer<()> {
        self.answer(move |state| {
            rules::signing_key(&key)?;
            let by = (key.owner.clone(), key.id.clone());
            match state.signing_keys.get(&by) {
                Some(known) if known.public == key.public => return Ok(()),
                Some(_) => return Err(rules::signing_key_exists(&key)),
                None if state.signing_keys.len() >= SIGNING_KEYS => return Err(rules::too_many_signing_keys()),
                None => {}
            }
            state.signing_keys.insert(by, key);
            Ok(())
        })
    }

    fn signing_keys(&self) -> Answer<Vec<SigningKey>> {
        self.answer(|state| Ok(state.signing_keys.values().cloned().collect()))
    }

    fn remove_signing_key(&self, owner: Option<&TenantId>, id: &str) -> Answer<()> {
        let by = (owner.cloned(), id.to_owned());
        self.answer(move |state| match state.signing_keys.remove(&by) {
            Some(_) => Ok(()),
            None => Err(rules::no_signing_key(&by.1)),
        })
    }
}
