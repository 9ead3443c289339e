//! Components that were pushed and that nobody waits for.

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Answer, Digest, PushBegun, PushOnRecord, PushStore, rules};

use super::MemoryMetadata;

impl PushStore for MemoryMetadata {
    fn begin_push(&self, push: PushOnRecord) -> Answer<PushBegun> {
        let now_ms = self.clock.wall_ms();
        self.answer(move |state| state.pushes.begin(push, now_ms))
    }

    fn step_push(&self, push: PushOnRecord) -> Answer<bool> {
        let now_ms = self.clock.wall_ms();
        self.answer(move |state| {
            rules::push(&push)?;
            Ok(state.pushes.step(push, now_ms))
        })
    }

    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<Option<PushOnRecord>> {
        let (owner, now_ms) = (owner.cloned(), self.clock.wall_ms());
        self.answer(move |state| Ok(state.pushes.get(owner.as_ref(), digest, now_ms)))
    }

    fn abandon_pushes(&self, worker: &NodeId) -> Answer<()> {
        let (worker, now_ms) = (worker.clone(), self.clock.wall_ms());
        self.answer(move |state| {
            state.pushes.abandon(&worker, now_ms);
            Ok(())
        })
    }
}
