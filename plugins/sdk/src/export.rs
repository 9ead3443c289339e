//! From a trait to a world's exports.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::bindings::{conflict_resolver, consistency_policy, routing_hook};
use crate::{ConflictResolver, ConsistencyPolicy, Error, Plugin, RoutingHook};

/// Where an instance keeps its plugin. WebAssembly has one thread, so this is one static.
pub type Slot<P> = RefCell<State<P>>;

/// A plugin, made from its default at the first use and configured at most once.
#[derive(Debug, Default)]
pub struct State<P>(P);

/// The plugin's slot, name and version: the macros implement it.
pub trait Named {
    /// The trait's implementor.
    type Plugin: Plugin;
    /// The crate's name.
    const NAME: &'static str;
    /// The crate's version.
    const VERSION: &'static str;
    /// The slot.
    fn slot() -> &'static LocalKey<Slot<Self::Plugin>>;
}

fn ask<N: Named, T>(question: impl FnOnce(&N::Plugin) -> Result<T, Error>) -> Result<T, Error> {
    N::slot().with(|slot| match slot.try_borrow() {
        Ok(state) => question(&state.0),
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
                let configured = N::slot().with(|slot| match slot.try_borrow_mut() {
                    Ok(mut state) => state.0.configure(&configuration),
                    Err(_) => Err(vec![crate::ConfigIssue::new("", "configured while it answers")]),
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

    fn prefer_replicas(key: Vec<u8>, candidates: Vec<crate::routing::Candidate>) -> Result<Vec<u8>, Error> {
        ask::<N, _>(|plugin| plugin.prefer_replicas(&key, &candidates))
    }
}

/// Makes a type that implements [`ConsistencyPolicy`] the plugin of this crate. Once per crate.
#[macro_export]
macro_rules! consistency_policy {
    ($plugin:ty) => {
        $crate::export_plugin!($plugin, Policy, consistency_policy);
    };
}

/// Makes a type that implements [`ConflictResolver`] the plugin of this crate. Once per crate.
#[macro_export]
macro_rules! conflict_resolver {
    ($plugin:ty) => {
        $crate::export_plugin!($plugin, Resolver, conflict_resolver);
    };
}

/// Makes a type that implements [`RoutingHook`] the plugin of this crate. Once per crate.
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
                static SLOT: $crate::macro_support::Slot<$plugin> = ::core::default::Default::default();
            }
            struct ThisPlugin;
            impl $crate::macro_support::Named for ThisPlugin {
                type Plugin = $plugin;
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
                fn slot() -> &'static ::std::thread::LocalKey<$crate::macro_support::Slot<$plugin>> {
                    &SLOT
                }
            }
            type Exports = $crate::macro_support::$exports<ThisPlugin>;
    $crate::macro_support::$world::export!(Exports with_types_in $crate::macro_support::$world);
        };
    };
}
