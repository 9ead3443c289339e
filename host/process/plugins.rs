//! The plugin platform of a coordinator: its host, and where its bindings are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_plugin::metrics::Counts;
use witan_plugin::registry::{Artifact, Source};
use witan_plugin::{BindingRecord, Digest, Limits, PluginError, PluginHost, PluginStore, Settings};
use witan_store::metadata::{self, ArtifactEntry, Metadata, PAGE, Slot};

use super::config::Config;

/// Starts the plugin host on the coordinator's folders. Plugins and bindings are in the metadata store.
pub(super) async fn start(config: &Config, metadata: Arc<dyn Metadata>) -> anyhow::Result<PluginHost> {
    let settings = Settings {
        data_dir: config.data_dir.join("plugins"),
        folder: config.plugins.clone(),
        limits: Limits::default(),
    };
    let shared = config.shared.postgres.is_some();
    let store = Arc::new(Stored { metadata, shared, runtime: Handle::current(), versions: Mutex::default() });
    let started = tokio::task::spawn_blocking(move || PluginHost::start(settings, store));
    started.await?.context("start the plugin host")
}

/// Puts in force what other coordinators have changed of plugins and bindings; `None`: of all.
pub(super) async fn refresh(host: &PluginHost, slots: Option<Vec<Slot>>) -> Result<(), StoreError> {
    let slots = slots.map(|slots| slots.into_iter().map(|slot| (slot.tenant, slot.hook)).collect());
    host.refresh(slots).await.map_err(|error| match error {
        PluginError::Store(error) => error,
        other => StoreError::Unavailable(other.to_string()),
    })
}

/// Plugins and bindings in the metadata store. A change is refused when another coordinator has changed the binding since it
/// was read.
struct Stored {
    metadata: Arc<dyn Metadata>,
    shared: bool,
    runtime: Handle,
    /// The versions that were read or stored last. At most as many as there can be bindings.
    versions: Mutex<HashMap<Slot, u64>>,
}

impl Stored {
    fn versions(&self) -> MutexGuard<'_, HashMap<Slot, u64>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, slot: &Slot) -> u64 {
        self.versions().get(slot).copied().unwrap_or(0)
    }

    fn learn(&self, slot: Slot, version: Option<u64>) {
        match version {
            Some(version) => self.versions().insert(slot, version),
            None => self.versions().remove(&slot),
        };
    }
}

impl PluginStore for Stored {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn components(&self) -> Result<Vec<Artifact>, StoreError> {
        let mut components: Vec<Artifact> = Vec::new();
        loop {
            let last = components.last().map(|artifact| on_record(artifact.digest));
            let page = self.runtime.block_on(self.metadata.artifacts(last, PAGE))?;
            let ended = page.len() < PAGE as usize;
            components.extend(page.into_iter().map(component));
            if ended {
                return Ok(components);
            }
        }
    }

    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        let found = self.runtime.block_on(self.metadata.artifact(on_record(digest)))?;
        Ok(found.map(|artifact| artifact.bytes))
    }

    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
        let source = match &artifact.source {
            Source::Upload => None,
            Source::File(name) => Some(name.clone()),
        };
        let entry = ArtifactEntry {
            digest: on_record(artifact.digest),
            name: artifact.name.clone(),
            version: artifact.version.clone(),
            hook: artifact.hook,
            deterministic: artifact.deterministic,
            source,
            size: artifact.bytes,
            created_at_ms: artifact.staged_at_ms,
        };
        self.runtime.block_on(self.metadata.put_artifact(metadata::Artifact { entry, bytes: bytes.clone() }))
    }

    fn forget(&self, digest: Digest) -> Result<(), StoreError> {
        match self.runtime.block_on(self.metadata.remove_artifact(on_record(digest))) {
            Err(StoreError::Missing(_)) => Ok(()),
            removed => removed,
        }
    }

    fn bindings(&self) -> Result<Vec<BindingRecord>, StoreError> {
        let stored = self.runtime.block_on(self.metadata.binding_records())?;
        let records = stored.iter().map(|stored| BindingRecord::decode(&stored.record)).collect();
        *self.versions() = stored.into_iter().map(|stored| (stored.slot, stored.version)).collect();
        records
    }

    fn binding(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<BindingRecord>, StoreError> {
        let slot = Slot { tenant: tenant.cloned(), hook };
        let stored = self.runtime.block_on(self.metadata.binding_record(&slot))?;
        self.learn(slot, stored.as_ref().map(|stored| stored.version));
        stored.map(|stored| BindingRecord::decode(&stored.record)).transpose()
    }

    fn save(&self, record: &BindingRecord) -> Result<(), StoreError> {
        let slot = Slot { tenant: record.tenant.clone(), hook: record.hook };
        let puts_in_force = Some(on_record(record.current.digest));
        let expected = self.version(&slot);
        let saving = self.metadata.save_binding_record(&slot, expected, record.encode(), puts_in_force);
        let version = self.runtime.block_on(saving)?;
        self.learn(slot, Some(version));
        Ok(())
    }

    fn remove(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<(), StoreError> {
        let slot = Slot { tenant: tenant.cloned(), hook };
        self.runtime.block_on(self.metadata.remove_binding_record(&slot, self.version(&slot)))?;
        self.learn(slot, None);
        Ok(())
    }
}

fn on_record(digest: Digest) -> metadata::Digest {
    metadata::Digest(*digest.bytes())
}

fn component(entry: ArtifactEntry) -> Artifact {
    Artifact {
        digest: Digest::from_bytes(entry.digest.0),
        name: entry.name,
        version: entry.version,
        hook: entry.hook,
        deterministic: entry.deterministic,
        bytes: entry.size,
        staged_at_ms: entry.created_at_ms,
        source: entry.source.map_or(Source::Upload, Source::File),
    }
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
