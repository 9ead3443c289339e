//! The plugin host as the control plane sees it.

use witan_kernel::port::{self, Answer, Slot, StoreError};

use crate::{PluginError, PluginHost};

impl port::PluginHost for PluginHost {
    fn refresh(&self, slots: Option<Vec<Slot>>) -> Answer<()> {
        let host = self.clone();
        Box::pin(async move {
            // The inherent method.
            PluginHost::refresh(&host, slots).await.map_err(failed)
        })
    }

    fn tend(&self) -> Answer<bool> {
        let host = self.clone();
        Box::pin(async move { PluginHost::tend(&host).await.map_err(failed) })
    }
}

fn failed(error: PluginError) -> StoreError {
    match error {
        PluginError::Store(error) => error,
        other => StoreError::Unavailable(other.to_string()),
    }
}
