//! `witan plugin push`: sends components, and waits for what becomes of them, or does not.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use witan_plugin::signature::Signature;
use witan_wire::v1::upload_plugin_request::Part;
use witan_wire::v1::{GetPluginRequest, PluginInfo, UploadPluginManifest, UploadPluginRequest};

use super::library::plugin_json;
use super::{COMPONENT, sign};
use crate::cli::Global;
use crate::cli::args::{self, Source};
use crate::cli::client::{self, Problem, within, within_long};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output};

/// Bytes of one uploaded chunk: half of what the API allows.
const CHUNK_BYTES: usize = 512 << 10;

/// How often it is asked how far a push is: often enough for a line that somebody watches.
const LOOK: Duration = Duration::from_millis(500);
/// After this time the line says that one need not wait.
const HINT_AFTER: Duration = Duration::from_secs(5);

pub(super) const PUSH_EXAMPLES: &str = "\
The coordinator checks and compiles the component before it reports it as ready; if it refuses one, it says why. It goes on when nobody \
waits any longer: `witan plugin show DIGEST` tells how far it is, at every coordinator, and for a day why it was refused. \
Pushing the same bytes again changes nothing. A plugin has no effect until it is bound. Without --tenant it belongs to the operator and is \
for all tenants; a tenant may have 32 plugins and 64 MiB of components. A name is either the operator's or that of tenants.

Examples:
  witan plugin push set-union.wasm
  witan plugin push own.wasm --tenant carts
  witan plugin push python.wasm --no-wait
  witan plugin push set-union.wasm --signature set-union.wasm.sig
  witan plugin push target/plugins/*.wasm --output json";

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
    /// Return as soon as the components are sent, with digest and state; `witan plugin show DIGEST` tells how far each is
    #[arg(long)]
    pub no_wait: bool,
}

pub(super) async fn push(global: &Global, args: Push) -> anyhow::Result<ExitCode> {
    let tenant = args.tenant.unwrap_or_default();
    let how = How::of(global, args.no_wait);
    if args.signature.is_some() && args.files.len() > 1 {
        anyhow::bail!("--signature is of one component, and {} are named: push them one by one", args.files.len());
    }
    let signature = match args.signature {
        Some(path) => Some(tokio::task::spawn_blocking(move || sign::read(&path)).await??),
        None => None,
    };
    let mut pushed = Vec::new();
    for file in &args.files {
        let sent = Sent { file, tenant: &tenant, signature: signature.as_ref() };
        let plugin = match how {
            How::Watched => watched(global, &sent).await?,
            How::Waited => upload(global, &sent, None).await?,
            How::Left => upload(global, &sent, Some(false)).await?,
        };
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

/// How the end of a push is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Somebody looks on: it is shown how far it has come.
    Watched,
    /// By a program: for the answer, whose reason it can tell apart.
    Waited,
    /// Not at all.
    Left,
}

impl How {
    fn of(global: &Global, no_wait: bool) -> Self {
        match global.output {
            _ if no_wait => Self::Left,
            Output::Text if std::io::stderr().is_terminal() => Self::Watched,
            Output::Text | Output::Json => Self::Waited,
        }
    }
}

/// What is pushed.
pub(super) struct Sent<'a> {
    pub(super) file: &'a Path,
    /// Empty: for all tenants.
    pub(super) tenant: &'a str,
    pub(super) signature: Option<&'a Signature>,
}

/// Uploads a component; returns what the coordinator reports about it.
pub(super) async fn upload(global: &Global, sent: &Sent<'_>, wait: Option<bool>) -> anyhow::Result<PluginInfo> {
    let source = Source::File(sent.file.to_owned());
    let component = tokio::task::spawn_blocking(move || source.read(&COMPONENT)).await??;
    let manifest = UploadPluginManifest { wait, ..manifest(&component, sent.tenant, sent.signature) };
    let request = within_long(global, tokio_stream::iter(parts(manifest, component)));
    let answer = client::plugins(global).await?.upload_plugin(request).await.map_err(Problem::of(Deed::Push))?;
    answer.into_inner().plugin.context("the coordinator did not report the state of the plugin")
}

/// Pushes a component, and shows how far it is until it is ready or refused.
async fn watched(global: &Global, sent: &Sent<'_>) -> anyhow::Result<PluginInfo> {
    let began = Instant::now();
    let mut plugin = upload(global, sent, Some(false)).await?;
    let mut plugins = client::plugins(global).await?;
    while is_under_way(&plugin) {
        output::progress(&progress_text(sent.file, &plugin, began.elapsed()));
        if began.elapsed() >= global.long_timeout() {
            output::progress("");
            let late = format!("it is {} after {} s", plugin.state, began.elapsed().as_secs());
            return Err(failed(Code::DeadlineExceeded, "DEADLINE", late, "in-doubt"));
        }
        tokio::time::sleep(LOOK).await;
        let request = GetPluginRequest { plugin: plugin.digest.clone(), tenant_id: sent.tenant.to_owned() };
        let answer = plugins.get_plugin(within(global, request)).await.map_err(Problem::of(Deed::Push))?;
        plugin = answer.into_inner().plugin.context("the coordinator did not describe the plugin")?;
    }
    output::progress("");
    if plugin.state == "refused" {
        return Err(failed(Code::FailedPrecondition, "PLUGIN_REFUSED", plugin.reason, "not-applied"));
    }
    Ok(plugin)
}

/// What a coordinator would have answered to somebody who waited.
fn failed(code: Code, reason: &str, message: String, outcome: &str) -> anyhow::Error {
    let facts = HashMap::from([("outcome".to_owned(), outcome.to_owned())]);
    let details = ErrorDetails::with_error_info(reason, "witan", facts);
    Problem::of(Deed::Push)(Status::with_error_details(code, message, details)).into()
}

fn is_under_way(plugin: &PluginInfo) -> bool {
    matches!(plugin.state.as_str(), "staged" | "compiling")
}

/// The command that shows how far it is.
fn look(plugin: &PluginInfo) -> String {
    let tenant = if plugin.tenant_id.is_empty() { String::new() } else { format!(" --tenant {}", plugin.tenant_id) };
    format!("witan plugin show {}{tenant}", plugin.digest)
}

fn progress_text(file: &Path, plugin: &PluginInfo, since: Duration) -> String {
    let seconds = since.as_secs();
    let mut text = format!("{}: {}, {seconds} s", file.display(), plugin.state);
    if since >= HINT_AFTER {
        text = format!("{text} (it goes on without you: {})", look(plugin));
    }
    text
}

fn pushed_text(file: &Path, plugin: &PluginInfo) -> String {
    if is_under_way(plugin) {
        let PluginInfo { digest, state, .. } = plugin;
        return format!("{}: digest {digest}, {state}; see how far it is: {}", file.display(), look(plugin));
    }
    let PluginInfo { name, version, hook, digest, state, tenant_id, .. } = plugin;
    let whose = if tenant_id.is_empty() { String::new() } else { format!(" of tenant {tenant_id}") };
    format!("{}: {name}@{version} ({hook}){whose}, digest {digest}, {state}", file.display())
}

fn manifest(component: &Bytes, tenant: &str, signature: Option<&Signature>) -> UploadPluginManifest {
    let digest = Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect();
    let (size, tenant_id) = (component.len() as u64, tenant.to_owned());
    let key_id = signature.map(|signature| signature.key_id().to_owned()).unwrap_or_default();
    let signature = signature.map(|signature| Bytes::copy_from_slice(signature.bytes())).unwrap_or_default();
    UploadPluginManifest { size, digest, tenant_id, signature, key_id, wait: None }
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

    #[test]
    fn what_goes_on_says_how_to_look() {
        let mut plugin = PluginInfo { digest: "3f2a".into(), state: "compiling".into(), ..PluginInfo::default() };
        let text =
            |plugin: &PluginInfo, seconds| progress_text(Path::new("a.wasm"), plugin, Duration::from_secs(seconds));
        assert_eq!(text(&plugin, 2), "a.wasm: compiling, 2 s");
        assert_eq!(text(&plugin, 7), "a.wasm: compiling, 7 s (it goes on without you: witan plugin show 3f2a)");
        plugin.tenant_id = "carts".into();
        let left = pushed_text(Path::new("a.wasm"), &plugin);
        assert_eq!(left, "a.wasm: digest 3f2a, compiling; see how far it is: witan plugin show 3f2a --tenant carts");
    }
}
