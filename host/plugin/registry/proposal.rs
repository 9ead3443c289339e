//! What is asked of bindings, and what a change of a tenant's routing hook would be.

use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::candidate::{Bounds, Mode};
use witan_kernel::hook::{Hook, Partition};
use witan_kernel::name::{Key, TenantId};
use witan_kernel::tenant::Tenant;

use crate::binding::{OnFault, Reference, SlotRecord};
use crate::event::EventKind;
use crate::history::Author;
use crate::tenant::{Plan, TenantBinding};

/// A request to bind.
#[derive(Debug, Clone)]
pub struct BindRequest {
    /// The tenant; `None` for every tenant that has no binding.
    pub tenant: Option<TenantId>,
    /// The hook that the plugin is to answer.
    pub hook: Hook,
    /// The plugin.
    pub plugin: Reference,
    /// The plugin's configuration; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault of the plugin means for a request.
    pub on_fault: OnFault,
    /// Who asks for it, and why.
    pub author: Author,
}

/// A request to try a version beside the one in force.
#[derive(Debug, Clone)]
pub struct TryRequest {
    /// The version.
    pub bind: BindRequest,
    /// How it is asked.
    pub mode: Mode,
    /// How much it is asked; `None`: as much as its mode says.
    pub percent: Option<u8>,
    /// Beyond them it is taken back.
    pub bounds: Bounds,
    /// Seconds after which it is promoted by itself.
    pub promote_after_s: Option<u32>,
}

/// The generations that a tenant's entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// That of its rows.
    pub present: u32,
    /// That to which they move.
    pub coming: Option<u32>,
    /// That which they are to have.
    pub wanted: Option<u32>,
    /// The highest that was ever given.
    pub highest: u32,
}

impl Named {
    /// Those of a tenant.
    pub fn of(tenant: &Tenant) -> Self {
        Self {
            present: tenant.generation,
            coming: tenant.moving.map(|moving| moving.to.generation),
            wanted: tenant.wanted_generation,
            highest: tenant.generations,
        }
    }

    /// The generation that its rows have, or are to have.
    pub(super) fn target(&self) -> u32 {
        self.wanted.unwrap_or(self.present)
    }

    pub(super) fn names(&self, generation: u32) -> bool {
        generation == self.present || self.coming == Some(generation) || self.wanted == Some(generation)
    }
}

/// A change of a tenant's routing hook.
#[derive(Debug, Clone)]
pub enum RoutingChange {
    /// Another hook, or another configuration.
    Bind(BindRequest),
    /// The previous version of the binding.
    Rollback(TenantId, Author),
    /// None of its own.
    Unbind(TenantId, Author),
}

/// What a change of a tenant's routing hook would be.
#[derive(Debug)]
pub enum Proposal {
    /// Keys are placed as before: the binding can be changed at once.
    SamePlaces,
    /// Rows have to move.
    Swap(Box<Proposed>),
}

/// A swap that is prepared: the hook is loaded and has passed its probe. Nothing is recorded.
pub struct Proposed {
    pub(super) tenant: TenantId,
    pub(super) generation: u32,
    pub(super) from: Option<Arc<SlotRecord>>,
    pub(super) to: SlotRecord,
    pub(super) kind: EventKind,
    pub(super) author: Author,
    pub(super) plan: Option<Plan>,
    /// What places the keys afterwards, asked for this purpose alone; `None`: the native rule.
    pub(super) asked: Option<TenantBinding>,
}

impl std::fmt::Debug for Proposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposed")
            .field("tenant", &self.tenant)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Proposed {
    /// Asks the new hook for a key's partition, whatever share of the CPU that takes. Synchronous and bounded in time.
    pub fn partition_key(&self, key: &Key) -> Partition {
        match &self.asked {
            Some(asked) => asked.ask_apart(|instance| instance.partition_key(key.bytes())).into(),
            None => Partition::Native,
        }
    }
}
