//! The plugin platform of a coordinator: its host, and its metrics.

use std::sync::Arc;

use anyhow::Context;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use witan_kernel::port::Metadata;
use witan_plugin::metrics::Counts;
use witan_plugin::{Limits, PluginHost, Settings};
use witan_store::plugins::StoredPlugins;

use super::config::Config;

/// Starts the plugin host on the coordinator's folders. Plugins and bindings are in the metadata store.
pub(super) async fn start(config: &Config, metadata: Arc<dyn Metadata>) -> anyhow::Result<PluginHost> {
    let settings = Settings {
        data_dir: config.data_dir.join("plugins"),
        folder: config.plugins.clone(),
        limits: Limits::default(),
    };
    let shared = config.shared.postgres.is_some();
    let store = Arc::new(StoredPlugins::new(metadata, shared, Handle::current()));
    let started = tokio::task::spawn_blocking(move || PluginHost::start(settings, store));
    started.await?.context("start the plugin host")
}

/// Makes the host's counts visible.
pub(super) fn register(host: &PluginHost, registry: &mut Registry) {
    registry.register_collector(Box::new(Counted(host.clone())));
}

/// Picks one number.
type Read = fn(&Counts) -> u64;

#[derive(Debug)]
struct Counted(PluginHost);

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.0.counts();
        let metrics: [(&str, &str, Read); 6] = [
            ("witan_plugin_calls", "Questions put to plugins", |c| c.calls),
            ("witan_plugin_remembered", "Questions not put: equal ones had been answered", |c| c.remembered),
            ("witan_plugin_faults", "Questions on which plugins failed", |c| c.faults),
            ("witan_plugin_refused", "Questions not put: open breaker, full queue, share used up", |c| c.refused),
            ("witan_plugin_swaps", "Versions put in force", |c| c.swaps),
            ("witan_plugin_nanoseconds", "Time that calls took", |c| c.nanos),
        ];
        for (name, help, read) in metrics {
            let kind = prometheus_client::metrics::MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (hook, counts) in &counts {
                let label = [("hook", hook.as_str())];
                ConstCounter::new(read(counts)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}
