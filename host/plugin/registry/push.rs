//! Pushes that nobody waits for: the answer is how far each has come, which every coordinator can tell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use witan_kernel::port::{PushBegun, PushOnRecord, PushState, StoreError};
use witan_kernel::sync::lock;

use super::{Artifact, Inner, PluginHost, Source};
use crate::digest::Digest;
use crate::error::{HostError, PluginError};
use crate::fault::shorten;
use crate::limit;
use crate::upload::Push;

/// What has become of a component that was pushed.
#[derive(Debug, Clone, PartialEq)]
pub enum Pushed {
    /// It is a plugin.
    Ready(Artifact),
    /// It is under way, here or at another coordinator.
    UnderWay(PushOnRecord),
}

impl PluginHost {
    /// Begins to stage a component, and goes on with it after the answer. The same component of the same owner is staged once at a time, in
    /// the whole cluster. `held` is dropped when the work has ended: what bounds how much of it there may be.
    ///
    /// # Errors
    /// [`PluginError::Busy`] when too many pushes of this owner, or too many changes, are under way.
    pub async fn push(&self, push: impl Into<Push>, held: impl Send + 'static) -> Result<Pushed, PluginError> {
        let (inner, push) = (self.inner.clone(), push.into());
        self.change(&self.inner.lanes.pushes, move |_| inner.begin_push(push, held)).await
    }

    /// Learns of every component that is in the store by now, whoever has staged it.
    pub async fn learn(&self) -> Result<(), PluginError> {
        let learn = |inner: &Inner| {
            // What is in the store already may just be becoming known here.
            drop(lock(&inner.stocking));
            inner.sync_components()
        };
        self.change(&self.inner.lanes.pushes, learn).await
    }
}

impl Inner {
    fn begin_push(self: &Arc<Self>, push: Push, held: impl Send + 'static) -> Result<Pushed, PluginError> {
        let digest = Digest::of(&push.bytes);
        if self.owned(push.owner.as_ref(), digest).is_none() {
            self.sync_components()?;
        }
        if self.owned(push.owner.as_ref(), digest).is_some() {
            return self.stage(&push, Source::Upload, Instant::now()).map(Pushed::Ready);
        }
        let mine = PushOnRecord {
            owner: push.owner.clone(),
            digest,
            size: push.bytes.len() as u64,
            state: PushState::Staged,
            reason: String::new(),
            worker: self.coordinator.clone(),
            since_ms: 0,
        };
        match self.store.begin_push(mine.clone()) {
            Ok(PushBegun::Begun) => {}
            Ok(PushBegun::UnderWay(known)) => return Ok(Pushed::UnderWay(known)),
            Err(StoreError::Refused(_)) => return Err(PluginError::Busy),
            Err(error) => return Err(error.into()),
        }
        let (inner, job) = (self.clone(), mine.clone());
        let work = move || {
            inner.work_on(&push, &job);
            drop(held);
        };
        if self.lanes.uploads.submit(work).is_err() {
            self.end_push(&mine, PushState::Refused, &PluginError::Busy.to_string());
            return Err(PluginError::Busy);
        }
        Ok(Pushed::UnderWay(mine))
    }

    fn work_on(&self, push: &Push, mine: &PushOnRecord) {
        match self.store.step_push(PushOnRecord { state: PushState::Compiling, ..mine.clone() }) {
            Ok(true) => {}
            // It was given up, and begun anew elsewhere.
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(digest = %mine.digest, %error, "it is not recorded that a pushed plugin is compiled")
            }
        }
        let until = Instant::now() + limit::PUSH_WAIT;
        // A panic must not leave a push on record that seems to go on.
        let staged = catch_unwind(AssertUnwindSafe(|| self.stage(push, Source::Upload, until)));
        match staged.unwrap_or_else(|_| Err(HostError::Panicked.into())) {
            Ok(_) => self.end_push(mine, PushState::Ready, ""),
            Err(error) => self.end_push(mine, PushState::Refused, &reason(&error, mine.digest)),
        }
    }

    /// Records how a push has ended. If the store cannot be reached for long, it counts as given up after a while.
    fn end_push(&self, mine: &PushOnRecord, state: PushState, reason: &str) {
        let ended = PushOnRecord { state, reason: shorten(reason), ..mine.clone() };
        for _ in 0..limit::CHANGE_ATTEMPTS {
            match self.store.step_push(ended.clone()) {
                Ok(_) => return,
                Err(error) => tracing::warn!(digest = %mine.digest, %error, "the end of a push cannot be recorded"),
            }
            thread::sleep(limit::PUSH_RETRY);
        }
    }
}

/// Why a push has ended without a plugin, for its author. What failed of this host is for the log.
fn reason(error: &PluginError, digest: Digest) -> String {
    match error {
        PluginError::Host(why) => {
            tracing::error!(%digest, %why, "a pushed plugin could not be staged");
            "internal error; see the coordinator's log, and push it again".to_owned()
        }
        PluginError::Store(StoreError::Refused(why)) => why.clone(),
        PluginError::Store(why) => {
            tracing::warn!(%digest, %why, "a pushed plugin could not be stored");
            "the metadata store failed; push it again".to_owned()
        }
        other => other.to_string(),
    }
}
