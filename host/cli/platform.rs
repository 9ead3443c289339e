//! The plugin platform of a coordinator: its host, and where its bindings are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_plugin::metrics::Counts;
use witan_plugin::{BindingRecord, BindingStore, Limits, PluginHost, Settings};
use witan_store::metadata::{Metadata, Slot};

use super::compose::Config;

/// Starts the plugin host on the coordinator's folders. Its bindings are in the metadata store.
pub async fn start(config: &Config, metadata: Arc<dyn Metadata>) -> anyhow::Result<PluginHost> {
    let settings = Settings {
        data_dir: config.data_dir.join("plugins"),
        folder: config.plugins.clone(),
        limits: Limits::default(),
    };
    let bindings = Arc::new(Bindings { metadata, runtime: Handle::current(), versions: Mutex::default() });
    let started = tokio::task::spawn_blocking(move || PluginHost::start(settings, bindings));
    started.await?.context("start the plugin host")
}

/// Bindings in the metadata store. A change is refused when another coordinator has changed the binding since it was read.
struct Bindings {
    metadata: Arc<dyn Metadata>,
    runtime: Handle,
    /// The versions that were read or stored last. At most as many as there can be bindings.
    versions: Mutex<HashMap<Slot, u64>>,
}

impl Bindings {
    fn versions(&self) -> MutexGuard<'_, HashMap<Slot, u64>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, slot: &Slot) -> u64 {
        self.versions().get(slot).copied().unwrap_or(0)
    }
}

impl BindingStore for Bindings {
    fn load(&self) -> Result<Vec<BindingRecord>, StoreError> {
        let stored = self.runtime.block_on(self.metadata.binding_records())?;
        let records = stored.iter().map(|stored| BindingRecord::decode(&stored.record)).collect();
        *self.versions() = stored.into_iter().map(|stored| (stored.slot, stored.version)).collect();
        records
    }

    fn save(&self, record: &BindingRecord) -> Result<(), StoreError> {
        let slot = Slot { tenant: record.tenant.clone(), hook: record.hook };
        let saving = self.metadata.save_binding_record(&slot, self.version(&slot), record.encode());
        let version = self.runtime.block_on(saving)?;
        self.versions().insert(slot, version);
        Ok(())
    }

    fn remove(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<(), StoreError> {
        let slot = Slot { tenant: tenant.cloned(), hook };
        self.runtime.block_on(self.metadata.remove_binding_record(&slot, self.version(&slot)))?;
        self.versions().remove(&slot);
        Ok(())
    }
}

/// Makes the host's counts visible.
pub fn register(host: &PluginHost, registry: &mut Registry) {
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
