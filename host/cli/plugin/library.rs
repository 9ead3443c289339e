//! `witan plugin push`, `list`, `show` and `remove`: plugins themselves, and whose they are.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use witan_plugin::signature::Signature;
use witan_wire::v1::upload_plugin_request::Part;
use witan_wire::v1::{
    GetPluginRequest, ListPluginsRequest, ListPluginsResponse, PluginInfo, RemovePluginRequest, UploadPluginManifest,
    UploadPluginRequest,
};

use super::{COMPONENT, short, sign};
use crate::cli::Global;
use crate::cli::args::{self, Source};
use crate::cli::client::{self, Problem, within, within_long};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, Table, grouped};

/// Bytes of one uploaded chunk: half of what the API allows.
const CHUNK_BYTES: usize = 512 << 10;

pub(super) const PUSH_EXAMPLES: &str = "\
The coordinator checks, compiles and probes the component before it reports it as ready; if it refuses one, it says why. \
Pushing the same bytes again changes nothing. A plugin has no effect until it is bound. Without --tenant it belongs to the operator and is \
for all tenants; a tenant may have 32 plugins and 64 MiB of components. A name is either the operator's or that of tenants.

Examples:
  witan plugin push set-union.wasm
  witan plugin push own.wasm --tenant carts
  witan plugin push set-union.wasm --signature set-union.wasm.sig
  witan plugin push target/plugins/*.wasm --output json";

pub(super) const LIST_EXAMPLES: &str = "Examples:
  witan plugin list
  witan plugin list --tenant carts
  witan plugin list --output json | jq -r '.plugins[] | \"\\(.name) \\(.digest)\"'";

pub(super) const SHOW_EXAMPLES: &str = "Examples:
  witan plugin show set-union
  witan plugin show own --tenant carts
  witan plugin show 3f2a9c1e --output json";

pub(super) const REMOVE_EXAMPLES: &str =
    "Refused while a binding refers to it, or a previous binding that a rollback would restore.

Examples:
  witan plugin remove set-union@0.1.0
  witan plugin remove own --tenant carts
  witan plugin remove 3f2a9c1e";

/// Arguments of `plugin push`.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// WebAssembly components
    #[arg(required = true, value_name = "FILE", value_parser = args::path())]
    pub files: Vec<PathBuf>,
    /// The tenant that they will belong to [default: the operator, for all tenants]
    #[arg(short, long)]
    pub tenant: Option<String>,
    /// The file with the signature, for one component: see `witan plugin sign`
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub signature: Option<PathBuf>,
}

/// A plugin of somebody's.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// A digest, name@version, or name
    pub plugin: String,
    /// The tenant whose plugin it is [default: the operator's]
    #[arg(short, long)]
    pub tenant: Option<String>,
}

pub(super) async fn push(global: &Global, args: Push) -> anyhow::Result<ExitCode> {
    let tenant = args.tenant.unwrap_or_default();
    if args.signature.is_some() && args.files.len() > 1 {
        anyhow::bail!("--signature is of one component, and {} are named: push them one by one", args.files.len());
    }
    let signature = match args.signature {
        Some(path) => Some(tokio::task::spawn_blocking(move || sign::read(&path)).await??),
        None => None,
    };
    let mut pushed = Vec::new();
    for file in &args.files {
        let plugin = upload(global, file, &tenant, signature.as_ref()).await?;
        if global.output == Output::Text {
            output::line(&pushed_text(file, &plugin))?;
        }
        pushed.push(plugin);
    }
    if global.output == Output::Json {
        output::object(&json!({ "plugins": pushed.iter().map(plugin_json).collect::<Vec<_>>() }))?;
    }
    let refused = pushed.iter().any(|plugin| plugin.state.starts_with("refused"));
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Uploads a component; returns what the coordinator reports about it.
pub(super) async fn upload(
    global: &Global,
    file: &Path,
    tenant: &str,
    signature: Option<&Signature>,
) -> anyhow::Result<PluginInfo> {
    let source = Source::File(file.to_owned());
    let component = tokio::task::spawn_blocking(move || source.read(&COMPONENT)).await??;
    let manifest = manifest(&component, tenant, signature);
    let request = within_long(global, tokio_stream::iter(parts(manifest, component)));
    let answer = client::plugins(global).await?.upload_plugin(request).await.map_err(Problem::of(Deed::Push))?;
    answer.into_inner().plugin.context("the coordinator did not report the state of the plugin")
}

fn pushed_text(file: &Path, plugin: &PluginInfo) -> String {
    let PluginInfo { name, version, hook, digest, state, tenant_id, .. } = plugin;
    let whose = if tenant_id.is_empty() { String::new() } else { format!(" of tenant {tenant_id}") };
    format!("{}: {name}@{version} ({hook}){whose}, digest {digest}, {state}", file.display())
}

fn manifest(component: &Bytes, tenant: &str, signature: Option<&Signature>) -> UploadPluginManifest {
    let digest = Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect();
    let (size, tenant_id) = (component.len() as u64, tenant.to_owned());
    let key_id = signature.map(|signature| signature.key_id().to_owned()).unwrap_or_default();
    let signature = signature.map(|signature| Bytes::copy_from_slice(signature.bytes())).unwrap_or_default();
    UploadPluginManifest { size, digest, tenant_id, signature, key_id }
}

/// The manifest, then the component in chunks, which share its bytes.
fn parts(manifest: UploadPluginManifest, component: Bytes) -> impl Iterator<Item = UploadPluginRequest> + Send {
    let mut rest = component;
    let chunks = std::iter::from_fn(move || {
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
        (!chunk.is_empty()).then_some(Part::Chunk(chunk))
    });
    std::iter::once(Part::Manifest(manifest)).chain(chunks).map(|part| UploadPluginRequest { part: Some(part) })
}

pub(super) async fn list(global: &Global, tenant: Option<String>) -> anyhow::Result<ExitCode> {
    let request = within(global, ListPluginsRequest { tenant_id: tenant.unwrap_or_default() });
    let answer = client::plugins(global).await?.list_plugins(request).await;
    let ListPluginsResponse { plugins, grants, grants_unknown } = answer.map_err(Problem::query)?.into_inner();
    if global.output == Output::Json {
        let granted = grants.iter().map(
            |grant| json!({ "tenant_id": grant.tenant_id, "class": grant.class, "granted_at_ms": grant.granted_at_ms }),
        );
        output::object(&json!({
            "plugins": plugins.iter().map(plugin_json).collect::<Vec<_>>(),
            "grants": granted.collect::<Vec<_>>(),
            "grants_unknown": grants_unknown,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TENANT", "PLUGIN", "HOOK", "DIGEST", "BYTES", "CLASS", "STATE"]);
    for plugin in plugins {
        table.row([
            owner(&plugin).to_owned(),
            format!("{}@{}", plugin.name, plugin.version),
            plugin.hook,
            short(&plugin.digest).to_owned(),
            grouped(plugin.size),
            plugin.class,
            plugin.state,
        ]);
    }
    table.print("no plugins; push one: witan plugin push FILE")?;
    for grant in grants {
        output::line(&format!("granted: class {} to tenant {}", grant.class, grant.tenant_id))?;
    }
    if !grants_unknown.is_empty() {
        output::line(&format!("granted: not known: {grants_unknown}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn class(plugin: &PluginInfo) -> String {
    match plugin.class_reason.as_str() {
        "" => plugin.class.clone(),
        reason => format!("{}: it {reason}", plugin.class),
    }
}

fn owner(plugin: &PluginInfo) -> &str {
    if plugin.tenant_id.is_empty() { "(all)" } else { &plugin.tenant_id }
}

pub(super) async fn show(global: &Global, named: Named) -> anyhow::Result<ExitCode> {
    let request = GetPluginRequest { plugin: named.plugin, tenant_id: named.tenant.unwrap_or_default() };
    let answer = client::plugins(global).await?.get_plugin(within(global, request)).await;
    let plugin = answer.map_err(Problem::query)?.into_inner().plugin.context("the coordinator did not describe it")?;
    match global.output {
        Output::Json => output::object(&plugin_json(&plugin))?,
        Output::Text => {
            let signed_by = if plugin.signed_by.is_empty() { "(not signed)" } else { &plugin.signed_by };
            let lines = [
                ("plugin", format!("{}@{}", plugin.name, plugin.version)),
                ("tenant", owner(&plugin).to_owned()),
                ("hook", plugin.hook.clone()),
                ("digest", plugin.digest.clone()),
                ("bytes", grouped(plugin.size)),
                ("deterministic", plugin.deterministic.to_string()),
                ("signed by", signed_by.to_owned()),
                ("class", class(&plugin)),
                ("state", plugin.state.clone()),
            ];
            lines.iter().try_for_each(|(field, value)| output::line(&format!("{field:<14} {value}")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn remove(global: &Global, named: Named) -> anyhow::Result<ExitCode> {
    let Named { plugin, tenant } = named;
    let tenant_id = tenant.unwrap_or_default();
    let request = within(global, RemovePluginRequest { plugin: plugin.clone(), tenant_id: tenant_id.clone() });
    client::plugins(global).await?.remove_plugin(request).await.map_err(Problem::of(Deed::RemovePlugin))?;
    match global.output {
        Output::Json => output::object(&json!({ "plugin": plugin, "tenant_id": tenant_id, "outcome": "removed" }))?,
        Output::Text => output::line(&format!("removed {plugin}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn plugin_json(plugin: &PluginInfo) -> Value {
    json!({
        "digest": plugin.digest,
        "name": plugin.name,
        "version": plugin.version,
        "hook": plugin.hook,
        "deterministic": plugin.deterministic,
        "size": plugin.size,
        "state": plugin.state,
        "tenant_id": plugin.tenant_id,
        "signed_by": plugin.signed_by,
        "class": plugin.class,
        "class_reason": plugin.class_reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_travels_in_chunks_behind_its_digest() {
        let component = Bytes::from(vec![0; CHUNK_BYTES + 1]);
        let parts: Vec<_> =
            parts(manifest(&component, "carts", None), component).map(|request| request.part.unwrap()).collect();
        let Part::Manifest(manifest) = &parts[0] else { panic!("the manifest comes first") };
        assert_eq!((manifest.size, manifest.tenant_id.as_str()), (CHUNK_BYTES as u64 + 1, "carts"));
        assert_eq!(manifest.digest.len(), 64);
        let sizes: Vec<_> = parts[1..].iter().map(|part| matches!(part, Part::Chunk(c) if !c.is_empty())).collect();
        assert_eq!(sizes, [true, true]);
    }
}
