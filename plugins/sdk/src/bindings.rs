//! The generated bindings of each world.

pub(crate) use witan_world_conflict_resolver as conflict_resolver;
pub(crate) use witan_world_consistency_policy as consistency_policy;
pub(crate) use witan_world_routing_hook as routing_hook;
