//! Bindings of routing hooks after a swap: once it has ended, or was given up, what is on record of the binding is brought into line with
//! the tenant's entry.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use witan_kernel::name::TenantId;
use witan_kernel::port::Metadata;
use witan_plugin::PluginHost;

/// How often it is looked for swaps that have ended. Nothing rests on it: what is kept longer is only memory, and a binding that is shown.
const EVERY: Duration = Duration::from_secs(5);

/// Brings the record of a tenant's routing hook into line with the tenant's entry. A failure is logged: it is tried again.
pub(super) async fn settle(metadata: &Arc<dyn Metadata>, plugins: &PluginHost, tenant: TenantId) {
    let (metadata, runtime, id) = (Arc::clone(metadata), Handle::current(), tenant.clone());
    // On a thread of the plugin host, which may wait.
    let read = move || runtime.block_on(metadata.tenant(&id));
    if let Err(error) = plugins.settle(tenant.clone(), read).await {
        tracing::debug!(%tenant, %error, "the binding of a routing hook is brought into line with its tenant later");
    }
}

/// Does so for every tenant whose swap may have ended, again and again; and loads what places records and could not be loaded at the start.
pub(super) async fn settle_all(metadata: Arc<dyn Metadata>, plugins: PluginHost) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = plugins.load_places().await {
            tracing::warn!(%error, "a routing hook by which records are placed cannot be loaded yet; it will be tried again");
        }
        for tenant in plugins.unsettled() {
            settle(&metadata, &plugins, tenant).await;
        }
    }
}
