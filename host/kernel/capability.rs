//! Abilities that nodes and coordinators name to each other, for what a previous version does not have. Nothing that one of them would not
//! understand is sent to it, or stored where it may read it.

/// Reads records of codec 2 and contexts of version 2, and carries out [`crate::replica::Ask::Names`] and [`crate::replica::Ask::Unpin`].
pub const NAMES: &str = "names";
