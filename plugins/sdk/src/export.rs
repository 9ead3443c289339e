//! Turns an implementation of a trait into the exports of a world.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::bindings::{conflict_resolver, consistency_policy, routing_hook};
use crate::{Attributes, ConflictResolver, ConsistencyPolicy, Error, Plugin, RoutingHook};

/// Holds the plugin of an instance: created by `Default` at its first use and configured at most once. A single static is enough,
/// because a WebAssembly instance has one thread.
pub type PluginCell<P> = RefCell<P>;

/// The plugin's name, version and cell. Implemented by the macros.
pub trait Named {
    /// The type that implements the plugin.
    type Plugin: Plugin;
    /// The crate's name.
    const NAME: &'static str;
    /// The crate's version.
    const VERSION: &'static str;
    /// The cell that holds the plugin.
    fn cell() -> &'static LocalKey<PluginCell<Self::Plugin>>;
}

fn ask<N: Named, T>(question: impl FnOnce(&N::Plugin) -> Result<T, Error>) -> Result<T, Error> {
    N::cell().with(|cell| match cell.try_borrow() {
        Ok(plugin) => question(&plugin),
        Err(_) => Err(Error::Internal),
    })
}

/// A consistency policy's exports.
#[derive(Debug)]
pub struct Policy<N>(std::marker::PhantomData<N>);
/// A conflict resolver's exports.
#[derive(Debug)]
pub struct Resolver<N>(std::marker::PhantomData<N>);
/// A routing hook's exports.
#[derive(Debug)]
pub struct Routing<N>(std::marker::PhantomData<N>);

macro_rules! plugin_interface {
    ($exports:ident, $world:ident, $hook:literal) => {
        impl<N: Named> $world::exports::witan::plugin::plugin::Guest for $exports<N> {
            fn describe() -> $world::exports::witan::plugin::plugin::Manifest {
                $world::exports::witan::plugin::plugin::Manifest {
                    name: N::NAME.to_owned(),
                    version: N::VERSION.to_owned(),
                    hook: $hook.to_owned(),
                    deterministic: N::Plugin::DETERMINISTIC,
                }
            }

            fn configure(
                configuration: Vec<u8>,
            ) -> Result<(), Vec<$world::exports::witan::plugin::plugin::ConfigIssue>> {
                let configured = N::cell().with(|cell| match cell.try_borrow_mut() {
                    Ok(mut plugin) => plugin.configure(&configuration),
                    Err(_) => Err(vec![crate::ConfigIssue::new("", "is configured during a call")]),
                });
                configured.map_err(|issues| {
                    issues
                        .into_iter()
                        .map(|issue| $world::exports::witan::plugin::plugin::ConfigIssue {
                            at: issue.at,
                            problem: issue.problem,
                        })
                        .collect()
                })
            }
        }
    };
}

plugin_interface!(Policy, consistency_policy, "consistency-policy");
plugin_interface!(Resolver, conflict_resolver, "conflict-resolver");
plugin_interface!(Routing, routing_hook, "routing-hook");

impl<N: Named> consistency_policy::exports::witan::plugin::policy::Guest for Policy<N>
where
    N::Plugin: ConsistencyPolicy,
{
    fn decide(question: crate::policy::Question) -> Result<crate::policy::Answer, Error> {
        ask::<N, _>(|plugin| plugin.decide(&question))
    }
}

impl<N: Named> conflict_resolver::exports::witan::plugin::resolver::Guest for Resolver<N>
where
    N::Plugin: ConflictResolver,
{
    fn resolve(question: crate::resolver::Question) -> Result<crate::resolver::Verdict, Error> {
        ask::<N, _>(|plugin| plugin.resolve(&question))
    }

    fn resolve_many(questions: Vec<crate::resolver::Question>) -> Vec<Result<crate::resolver::Verdict, Error>> {
        N::cell().with(|cell| match cell.try_borrow() {
            Ok(plugin) => plugin.resolve_many(&questions),
            Err(_) => questions.iter().map(|_| Err(Error::Internal)).collect(),
        })
    }

    fn samples() -> Vec<Vec<u8>> {
        N::Plugin::samples()
    }
}

impl<N: Named> routing_hook::exports::witan::plugin::routing::Guest for Routing<N>
where
    N::Plugin: RoutingHook,
{
    fn partition_key(key: Vec<u8>) -> Result<Vec<u8>, Error> {
        ask::<N, _>(|plugin| plugin.partition_key(&key))
    }

    fn prefer_replicas(
        key: Vec<u8>,
        candidates: Vec<crate::routing::Candidate>,
        attributes: Attributes,
    ) -> Result<Vec<u8>, Error> {
        ask::<N, _>(|plugin| plugin.prefer_replicas(&key, &candidates, &attributes))
    }
}

/// Exports a type that implements [`ConsistencyPolicy`] as this crate's plugin. Use it once per crate.
#[macro_export]
macro_rules! consistency_policy {
    ($plugin:ty) => {
        $crate::export_plugin!($plugin, Policy, consistency_policy);
    };
}

/// Exports a type that implements [`ConflictResolver`] as this crate's plugin. Use it once per crate.
#[macro_export]
macro_rules! conflict_resolver {
    ($plugin:ty) => {
        $crate::export_plugin!($plugin, Resolver, conflict_resolver);
    };
}

/// Exports a type that implements [`RoutingHook`] as this crate's plugin. Use it once per crate.
#[macro_export]
macro_rules! routing_hook {
    ($plugin:ty) => {
        $crate::export_plugin!($plugin, Routing, routing_hook);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty, $exports:ident, $world:ident) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: $crate::macro_support::PluginCell<$plugin> = ::core::default::Default::default();
            }
            struct ThisPlugin;
            impl $crate::macro_support::Named for ThisPlugin {
                type Plugin = $plugin;
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
                fn cell() -> &'static ::std::thread::LocalKey<$crate::macro_support::PluginCell<$plugin>> {
                    &PLUGIN
                }
            }
            type Exports = $crate::macro_support::$exports<ThisPlugin>;
    $crate::macro_support::$world::export!(Exports with_types_in $crate::macro_support::$world);
        };
    };
}
