//! The SDK for Witan plugins: implement one trait and call one macro.
//!
//! ```
//! use witan_plugin_sdk::{ConsistencyPolicy, Error, Plugin, policy};
//!
//! /// Reads never require more than one replica.
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
//! Build the crate as a `cdylib` for `wasm32-unknown-unknown` and convert the module to a component; `witan plugin build` does both, and
//! `cargo xtask plugins` for the plugins of Witan's own repository. On other targets the macros expand to nothing, so that plugins can have
//! ordinary unit tests.

mod bindings;
mod config;
mod export;
pub mod host;
pub mod join;
pub mod policy;
pub mod resolver;
pub mod routing;

pub use config::{ConfigIssue, Settings};
pub use policy::ConsistencyPolicy;
pub use resolver::ConflictResolver;
pub use routing::RoutingHook;
pub use witan_world_consistency_policy::witan::plugin::types::Error;

/// Names and values. More may be added, so ignore names that you do not know, and cope with the absence of those that you know.
pub type Attributes = Vec<(String, String)>;

/// The value of an attribute, if it is there.
pub fn attribute<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A plugin of any kind. `Default` creates it unconfigured.
pub trait Plugin: Default + 'static {
    /// Whether equal questions always get equal answers. Resolvers and partition keys must be deterministic.
    const DETERMINISTIC: bool = true;

    /// Applies the binding's configuration: any bytes, at most 64 KiB, empty if the binding has none. Called once per instance, before
    /// the first question. The default implementation accepts only an empty configuration.
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
    //! Used by the macros' expansion. Not part of the public interface.
    pub use crate::export::{Named, PluginCell, Policy, Resolver, Routing};
    pub use {
        witan_world_conflict_resolver as conflict_resolver, witan_world_consistency_policy as consistency_policy,
        witan_world_routing_hook as routing_hook,
    };
}
