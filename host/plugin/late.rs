//! Plugins that are loaded after the start: a coordinator serves before the machine code of large ones has been read and
//! authenticated. What asks one of them meanwhile waits for it, but not for long.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::limit;

/// How far the loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LateLoading {
    /// Bindings whose plugins are not loaded yet.
    pub left: usize,
    /// Bindings whose plugins were not loaded when this host was started.
    pub of: usize,
}

/// Returns what is in force in the place of this binding once its plugin is loaded, and `None` as long as it is not.
type Loaded<B> = dyn Fn(&Arc<B>) -> Option<Arc<B>> + Send + Sync;

/// The plugins of a host that are loaded late; `B` is a binding of a tenant.
pub(crate) struct Late<B> {
    loaded: OnceLock<Box<Loaded<B>>>,
    progress: watch::Sender<LateLoading>,
}

impl<B> Default for Late<B> {
    fn default() -> Self {
        Self { loaded: OnceLock::new(), progress: watch::Sender::default() }
    }
}

impl<B> Late<B> {
    /// This number of bindings are loaded from now on. `loaded` says what has become of one.
    pub(crate) fn begin(&self, loaded: impl Fn(&Arc<B>) -> Option<Arc<B>> + Send + Sync + 'static, of: usize) {
        _ = self.loaded.set(Box::new(loaded));
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
    pub(crate) async fn ready(&self, binding: Arc<B>) -> Arc<B> {
        let Some(loaded) = self.loaded.get() else { return binding };
        let mut progress = self.progress.subscribe();
        let in_force = async {
            loop {
                progress.mark_unchanged();
                if let Some(now) = loaded(&binding) {
                    return Some(now);
                }
                if progress.changed().await.is_err() {
                    return None;
                }
            }
        };
        let in_force = tokio::time::timeout(limit::LATE_WAIT, in_force).await;
        in_force.ok().flatten().unwrap_or(binding)
    }
}
