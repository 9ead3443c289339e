//! Placement changes on record.

use witan_kernel::name::NodeId;
use witan_kernel::name::TenantId;
use witan_kernel::port::{
    Answer, Leftover, Migration, MigrationProgress, MigrationStatus, MigrationStore, MoveTenant, Owing,
    PlacementChange, Published, StoreError,
};

use super::MemoryMetadata;

fn later<T: Send + 'static>() -> Answer<T> {
    Box::pin(std::future::ready(Err(StoreError::Unavailable("placement changes are not kept yet".to_owned()))))
}

impl MigrationStore for MemoryMetadata {
    fn change_placement(&self, _: PlacementChange, _: u64) -> Answer<Migration> {
        later()
    }
    fn migration(&self, _: u64) -> Answer<Migration> {
        later()
    }
    fn migrations(&self, _: Option<u64>, _: u32) -> Answer<Vec<Migration>> {
        later()
    }
    fn note_migration(&self, _: u64, _: MigrationStatus, _: MigrationProgress, _: u64) -> Answer<()> {
        later()
    }
    fn cancel_migration(&self, _: u64, _: u64) -> Answer<Migration> {
        later()
    }
    fn move_tenant(&self, _: &TenantId, _: u64, _: MoveTenant, _: u64) -> Answer<Published> {
        later()
    }
    fn leftovers(&self, _: Option<&TenantId>, _: Option<Owing>) -> Answer<Vec<Leftover>> {
        later()
    }
    fn leftover_cleaned(&self, _: &TenantId, _: &NodeId, _: u64) -> Answer<()> {
        later()
    }
    fn forget_rings(&self, _: u64) -> Answer<bool> {
        later()
    }
}
