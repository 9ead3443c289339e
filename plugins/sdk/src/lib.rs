//! Everything a Witan plugin needs: implement one trait, call one macro.
//!
//! ```
//! use witan_plugin_sdk::{ConsistencyPolicy, Error, Plugin, policy};
//!
//! /// Reads never ask for more than one replica.
//! #[derive(Default)]
//! struct FastReads;
//!
//! impl Plugin for FastReads {}
//!
//! impl ConsistencyPolicy for FastReads {
//!     fn decide(&self, question: &policy::Question) -> Result<policy::Answer, Error> {
//!         let mut answer = policy::native(question);
//!         if question.operation == policy::Operation::Read {
//!             answer.required = 1;
//!         }
//!         Ok(answer)
//!     }
//! }
//!
//! witan_plugin_sdk::consistency_policy!(FastReads);
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` and turn the module into a component; `cargo xtask plugins` does
//! both. On any other target the macros do nothing, so that a plugin's rules have ordinary unit tests.

mod bindings;
mod config;
mod export;
pub mod host;
pub mod policy;
pub mod resolver;
pub mod routing;

pub use config::{ConfigIssue, Settings};
pub use policy::ConsistencyPolicy;
pub use resolver::ConflictResolver;
pub use routing::RoutingHook;
pub use witan_world_consistency_policy::witan::plugin::types::Error;

/// What every plugin is. `Default` is the plugin without any configuration.
pub trait Plugin: Default + 'static {
    /// True when equal questions always get equal answers. Resolvers and partition keys must be.
    const DETERMINISTIC: bool = true;

    /// Takes the binding's configuration: any bytes, at most 64 KiB, empty when the binding has none. Called once, before
    /// the first question. Without an implementation, a configuration that is not empty is refused.
    fn configure(&mut self, configuration: &[u8]) -> Result<(), Vec<ConfigIssue>> {
        if configuration.is_empty() {
            Ok(())
        } else {
            Err(vec![ConfigIssue::new("", "this plugin takes no configuration; bind it without one")])
        }
    }
}

#[doc(hidden)]
pub mod macro_support {
    //! What the macros expand to. Not for use by hand.
    pub use crate::export::{Named, Policy, Resolver, Routing, Slot, State};
    pub use {
        witan_world_conflict_resolver as conflict_resolver, witan_world_consistency_policy as consistency_policy,
        witan_world_routing_hook as routing_hook,
    };
}
