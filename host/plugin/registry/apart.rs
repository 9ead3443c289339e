//! What is asked apart from requests: which versions there are to ask, what they were asked last, and what they have logged.

use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::Slot;
use witan_kernel::question::Question;
use witan_kernel::sync::lock;

use super::target::no_binding;
use super::{BindRequest, Inner, PluginHost};
use crate::binding::OnFault;
use crate::dry_run::{DryRun, DryRunRequest};
use crate::error::PluginError;
use crate::history::Author;
use crate::lines::Tail;

impl PluginHost {
    /// Prepares a dry run: loads and probes the version, as if it were to be bound. Nothing is stored.
    pub async fn dry_run(&self, request: DryRunRequest) -> Result<DryRun, PluginError> {
        let DryRunRequest { tenant, hook, plugin, configuration } = request;
        let (on_fault, author) = (OnFault::default(), Author::default());
        let bind = BindRequest { tenant: Some(tenant.clone()), hook, plugin, configuration, on_fault, author };
        let probed = move |inner: &Inner| {
            let (slot, target) = inner.target(bind)?;
            inner.probed(&slot, &target)
        };
        let tried = self.change(&self.inner.lanes.changes, probed).await?;
        let published = self.inner.published.load();
        // One that cannot be loaded does not answer, as if there were none.
        let in_force = published.snapshot.in_force(&tenant, hook);
        let in_force = in_force.and_then(|binding| binding.active.primary.as_ref().ok().cloned());
        let (shadows, ticks) = (published.snapshot.shadows(), self.inner.shared.ticks.clone());
        Ok(DryRun::new(tried, in_force, &tenant, shadows, ticks))
    }

    /// The questions that a tenant's consistency policy was asked last, the newest first; at most
    /// [`crate::limit::RECENT_QUESTIONS`].
    pub fn recent_questions(&self, tenant: &TenantId) -> Vec<Question> {
        let binding = self.inner.published.load().snapshot.in_force(tenant, Hook::ConsistencyPolicy);
        let recent = binding.map(|binding| binding.recent.questions()).unwrap_or_default();
        recent.into_iter().map(|(key, question)| Question::Policy { key, question }).collect()
    }

    /// The lines that the versions of a binding have logged at this coordinator, from the oldest that is kept on.
    pub fn tail(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Tail, PluginError> {
        let slot = Slot { tenant, hook };
        if !lock(&self.inner.state).bindings.contains_key(&slot) {
            return Err(no_binding(&slot));
        }
        Ok(Tail::of(self.inner.shared.logs.of(&slot)))
    }
}
