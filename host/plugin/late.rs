//! Plugins that are loaded after the start: a coordinator serves before the machine code of large ones has been read and authenticated.
//! What asks one of them meanwhile waits for it, but not for long.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::limit;
use crate::registry::Inner;
use crate::tenant::TenantBinding;

/// How far the loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LateLoading {
    /// Bindings whose plugins are not loaded yet.
    pub left: usize,
    /// Bindings whose plugins were not loaded when this host was started.
    pub of: usize,
}

/// The plugins of a host that are loaded late.
#[derive(Debug, Default)]
pub(crate) struct Late {
    host: OnceLock<Weak<Inner>>,
    progress: watch::Sender<LateLoading>,
}

impl Late {
    /// This number of bindings are loaded from now on.
    pub(crate) fn begin(&self, host: Weak<Inner>, of: usize) {
        _ = self.host.set(host);
        self.progress.send_replace(LateLoading { left: of, of });
    }

    /// One more is loaded, or cannot be.
    pub(crate) fn one_less(&self) {
        self.progress.send_modify(|progress| progress.left = progress.left.saturating_sub(1));
    }

    pub(crate) fn progress(&self) -> LateLoading {
        *self.progress.borrow()
    }

    /// Waits for a binding's plugin for [`limit::LATE_WAIT`]; returns what is in force then.
    pub(crate) async fn ready(&self, binding: Arc<TenantBinding>) -> Arc<TenantBinding> {
        let within: Duration = limit::LATE_WAIT;
        let mut progress = self.progress.subscribe();
        let in_force = async {
            loop {
                progress.mark_unchanged();
                let host = self.host.get().and_then(Weak::upgrade);
                let now = host.and_then(|host| host.in_force(binding.tenant(), binding.active.hook));
                match now {
                    Some(now) if now.is_late() => {}
                    now => return now,
                }
                if progress.changed().await.is_err() {
                    return None;
                }
            }
        };
        let loaded = tokio::time::timeout(within, in_force).await;
        loaded.ok().flatten().unwrap_or(binding)
    }
}
