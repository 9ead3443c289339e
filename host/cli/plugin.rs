//! `witan plugin`: components, bindings, events.

mod candidates;
mod dry_run;
mod fenced;
mod grant;
mod keys;
pub mod kit;
mod library;
mod logs;
mod push;
mod sign;

use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Subcommand;
use serde_json::{Value, json};
use witan_kernel::hook::Hook;
use witan_kernel::limit::{COMPONENT_BYTES, PLUGIN_CONFIGURATION_BYTES};
use witan_plugin::binding::OnFault;
use witan_wire::v1::{
    BindPluginRequest, BindPluginResponse, Binding, ListBindingsRequest, PluginEvent, PluginInfo,
    RollbackBindingRequest, WatchPluginEventsRequest,
};

use super::Global;
use super::args::{Limit, Source};
use super::choice::{self, spelling};
use super::client::{self, Problem, within, within_long};
use super::deed::Deed;
use super::migration::watch;
use super::output::{self, Output, Table, grouped};

/// Limit of a component read from disk. The coordinator has its own, lower one; this one bounds memory here.
const COMPONENT: Limit =
    Limit { field: "FILE", bytes: COMPONENT_BYTES, remedy: "build the plugin for size (opt-level \"s\", strip)" };
/// Limit of a binding's configuration: the coordinator's, checked here before anything is sent.
const CONFIGURATION: Limit = Limit {
    field: "--configuration",
    bytes: PLUGIN_CONFIGURATION_BYTES,
    remedy: "keep only the settings that the plugin reads",
};

/// Shown below the help.
pub const EXAMPLES: &str = "\
A plugin is a WebAssembly component that answers one hook: a consistency policy (how many replicas must answer), a \
conflict resolver (what concurrent writes become), or a routing hook (where a key belongs). It is uploaded once, identified by its \
digest, and bound to a tenant and hook. Bindings can be swapped under load: no request fails because of it. A plugin belongs to a tenant \
(--tenant), which alone can see and bind it, or to the operator, whose plugins are for all tenants.

Examples:
  witan plugin push target/plugins/set-union.wasm
  witan plugin push own.wasm --tenant carts
  witan plugin bind conflict-resolver set-union --tenant carts
  witan plugin rollback conflict-resolver --tenant carts
  witan plugin events";

const BIND_EXAMPLES: &str = "\
PLUGIN is a digest (or the first 8 characters of one), name@version, or a name: the tenant's own plugin, or else the operator's, which \
operator/NAME asks for. A binding by name follows the file of \
that name in the coordinator's plugin folder. Without --tenant, it is the default for all tenants without a binding. --none \
removes the binding, and the native rule applies again. A change is in force at once; until the storage nodes have confirmed it, which \
`witan plugin bindings` shows and --wait waits for, a coordinator that is cut off from the metadata store may go by what was bound before. \
Another routing hook of a tenant places its keys elsewhere: its records move in the background, by a migration whose id is printed; --wait \
follows it, and `witan migration cancel` takes it back. Until it has ended, keys are placed by the hook of before.
With --shadow or --canary, the plugin is tried beside the one in force, and taken back by itself when it exceeds its bounds: whatever it \
fails to answer is answered by the plugin in force. `witan plugin report` shows how it does, `promote` puts it in force.

Examples:
  witan plugin bind conflict-resolver set-union --tenant carts
  witan plugin bind consistency-policy adaptive-latency@0.1.0 --configuration 'slow-us = 20000'
  witan plugin bind consistency-policy 3f2a9c1e --configuration @policy.conf --on-fault fail
  witan plugin bind routing-hook hash-tag --tenant carts --wait
  witan plugin bind consistency-policy adaptive-latency --shadow --max-differing 50
  witan plugin bind conflict-resolver set-union@0.2.0 --tenant carts --canary 1 --steps 10,50 --promote-after 3600
  witan plugin unbind routing-hook --tenant carts --wait";

const ROLLBACK_EXAMPLES: &str = "Examples:
  witan plugin rollback conflict-resolver --tenant carts
  witan plugin rollback routing-hook --tenant carts --wait
  witan plugin rollback consistency-policy";

const UNBIND_EXAMPLES: &str = "The same as `witan plugin bind HOOK --none`.

Examples:
  witan plugin unbind conflict-resolver --tenant carts
  witan plugin unbind routing-hook --tenant carts --wait";

const BINDINGS_EXAMPLES: &str = "Calls and faults are counted since the coordinator started.

Examples:
  witan plugin bindings
  witan plugin bindings --tenant carts";

const EVENTS_EXAMPLES: &str = "\
Prints recent events, then new ones until Ctrl-C or until --count were printed. With --output json, one object per line.

Examples:
  witan plugin events
  witan plugin events --new --count 1 --output json";

/// Subcommands of `plugin`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Upload components
    #[command(visible_alias = "upload", after_help = push::PUSH_EXAMPLES)]
    Push(push::Push),
    /// Bind a plugin to a hook, for one tenant or for all
    #[command(after_help = BIND_EXAMPLES)]
    Bind(Bind),
    /// Restore the previous binding
    #[command(after_help = ROLLBACK_EXAMPLES)]
    Rollback(Bound),
    /// Remove a binding: the native rule applies again
    #[command(after_help = UNBIND_EXAMPLES)]
    Unbind(Bound),
    /// Put a candidate in force
    #[command(after_help = candidates::PROMOTE_EXAMPLES)]
    Promote(candidates::Tried),
    /// End the trial of a candidate
    #[command(after_help = candidates::DISCARD_EXAMPLES)]
    Discard(candidates::Tried),
    /// Show what has become of a binding: when, by whom, why
    #[command(after_help = candidates::HISTORY_EXAMPLES)]
    History(candidates::Of),
    /// Show how a plugin and its candidate do
    #[command(after_help = candidates::REPORT_EXAMPLES)]
    Report(candidates::Reported),
    /// Ask a plugin about what a tenant has, and show where it answers differently from what is bound; nothing changes
    #[command(after_help = dry_run::EXAMPLES)]
    Try(dry_run::Try),
    /// Show what a binding's plugin has logged
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Logs),
    /// Show the uploaded plugins
    #[command(after_help = library::LIST_EXAMPLES)]
    List {
        /// Only plugins that this tenant can bind: its own and the operator's [default: all that may be seen]
        #[arg(short, long)]
        tenant: Option<String>,
    },
    /// Show one plugin
    #[command(after_help = library::SHOW_EXAMPLES)]
    Show(library::Named),
    /// Show which plugin is bound to which hook, for which tenant
    #[command(after_help = BINDINGS_EXAMPLES)]
    Bindings {
        /// Only bindings of this tenant
        #[arg(short, long)]
        tenant: Option<String>,
    },
    /// Follow the events of plugins
    #[command(after_help = EVENTS_EXAMPLES)]
    Events {
        /// Only events of this tenant's plugins and bindings [default: all]
        #[arg(short, long)]
        tenant: Option<String>,
        /// Skip past events
        #[arg(long)]
        new: bool,
        /// Stop after this number of events
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Sign components
    #[command(after_help = sign::EXAMPLES)]
    Sign(sign::Sign),
    /// Add, show and remove the keys with which plugins may be signed
    #[command(subcommand, after_help = keys::EXAMPLES)]
    Keys(keys::Command),
    /// Grant a class of limits to a tenant, or take it
    #[command(after_help = grant::EXAMPLES)]
    Grant(grant::Grant),
    /// Remove a plugin that nothing uses
    #[command(after_help = library::REMOVE_EXAMPLES)]
    Remove(library::Named),
    /// Author's kit: make a project for a plugin, in a folder of its own
    #[command(after_help = kit::EXAMPLES)]
    New(kit::Args),
    /// Author's kit: compile a project to a component
    #[command(after_help = kit::EXAMPLES)]
    Build(kit::Args),
    /// Author's kit: say whether a coordinator accepts a component, and what it takes of which limit
    #[command(after_help = kit::EXAMPLES)]
    Check(kit::Args),
    /// Author's kit: try a component on cases, and its laws
    #[command(after_help = kit::EXAMPLES)]
    Test(kit::Args),
    /// Author's kit: measure how long a component takes to answer
    #[command(after_help = kit::EXAMPLES)]
    Bench(kit::Args),
    /// Author's kit: build, upload and bind a project whenever it changes
    #[command(after_help = kit::EXAMPLES)]
    Dev(kit::Args),
}

/// A binding that is to be changed without naming a plugin.
#[derive(Debug, clap::Args)]
pub struct Bound {
    /// The hook
    #[arg(value_parser = choice::hook())]
    pub hook: Hook,
    /// The tenant [default: the binding for all tenants]
    #[arg(short, long)]
    pub tenant: Option<String>,
    /// Wait until no coordinator that is cut off can go by what was bound before; if records move, until they have
    #[arg(long)]
    pub wait: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Arguments of `plugin bind`.
#[derive(Debug, clap::Args)]
pub struct Bind {
    /// The hook
    #[arg(value_parser = choice::hook())]
    pub hook: Hook,
    /// A digest, name@version, name, or operator/NAME
    #[arg(required_unless_present = "none", conflicts_with = "none")]
    pub plugin: Option<String>,
    /// The tenant [default: all tenants without a binding]
    #[arg(short, long)]
    pub tenant: Option<String>,
    /// Configuration for the plugin: text, @FILE, or - for standard input
    #[arg(long, value_name = "TEXT", value_parser = Source::parse)]
    pub configuration: Option<Source>,
    /// What decides when the plugin fails [default: native]
    #[arg(long, value_parser = choice::on_fault())]
    pub on_fault: Option<OnFault>,
    /// Try it beside the plugin in force, on PERCENT of the questions; its answers are compared and dropped [default: 10]
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, group = "candidate", conflicts_with = "none")]
    pub shadow: Option<Option<u32>>,
    /// Try it instead of the plugin in force, for PERCENT of the keys
    #[arg(long, value_name = "PERCENT", group = "candidate", conflicts_with = "none")]
    pub canary: Option<u32>,
    /// When it is taken back or promoted by itself
    #[command(flatten)]
    pub trial: TrialArgs,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Remove the binding
    #[arg(long)]
    pub none: bool,
    /// Wait until no coordinator that is cut off can go by what was bound before; if records move, until they have
    #[arg(long)]
    pub wait: bool,
}

impl Bind {
    /// Of a hook, with nothing else.
    pub fn of(hook: Hook) -> Self {
        Self {
            hook,
            plugin: None,
            tenant: None,
            configuration: None,
            on_fault: None,
            shadow: None,
            canary: None,
            trial: TrialArgs::default(),
            reason: None,
            none: false,
            wait: false,
        }
    }
}

/// When a candidate is taken back or promoted by itself.
#[derive(Debug, Default, clap::Args)]
#[group(id = "trial", multiple = true)]
pub struct TrialArgs {
    /// Promote it after this number of seconds in which nothing was found
    #[arg(long, value_name = "SECONDS", requires = "candidate")]
    pub promote_after: Option<u32>,
    /// Percentages to which a canary rises, each after a window in which nothing was found
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', requires = "canary")]
    pub steps: Vec<u32>,
    /// Most faults, in thousandths of the questions [default: 10]
    #[arg(long, value_name = "PERMILLE", requires = "candidate")]
    pub max_faults: Option<u32>,
    /// Most questions declined or not asked, in thousandths [default: 100]
    #[arg(long, value_name = "PERMILLE", requires = "candidate")]
    pub max_refused: Option<u32>,
    /// Most answers of a shadow that differ, in thousandths [default: any]
    #[arg(long, value_name = "PERMILLE", requires = "candidate")]
    pub max_differing: Option<u32>,
    /// Longest 99th percentile of its calls, in microseconds [default: any]
    #[arg(long, value_name = "MICROSECONDS", requires = "candidate")]
    pub max_p99: Option<u32>,
    /// The window over which it is judged [default: 60]
    #[arg(long, value_name = "SECONDS", requires = "candidate")]
    pub window: Option<u32>,
    /// Questions in a window below which nothing is judged [default: 20]
    #[arg(long, value_name = "N", requires = "candidate")]
    pub least_answers: Option<u32>,
}

/// Runs a subcommand of `plugin`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Push(args) => push::push(global, args).await,
        Command::Bind(args) => {
            let (waits_for, wait) = (args.tenant.clone().unwrap_or_default(), args.wait);
            let verb = if candidates::mode(&args).is_empty() { "bound" } else { "tried" };
            let answer = bind(global, args).await?;
            bound(global, verb, &answer, wait.then_some(waits_for)).await
        }
        Command::Unbind(Bound { hook, tenant, wait, reason }) => {
            let waits_for = wait.then(|| tenant.clone().unwrap_or_default());
            let unbind = Bind { hook, tenant, none: true, wait, reason, ..Bind::of(hook) };
            let answer = bind(global, unbind).await?;
            bound(global, "unbound", &answer, waits_for).await
        }
        Command::Rollback(Bound { hook, tenant, wait, reason }) => {
            let tenant = tenant.unwrap_or_default();
            let request = RollbackBindingRequest {
                tenant_id: tenant.clone(),
                hook: spelling(Some(hook)),
                reason: reason.unwrap_or_default(),
            };
            let answer = client::plugins(global).await?.rollback_binding(within(global, request)).await;
            let answer = answer.map_err(Problem::of(Deed::Bind))?.into_inner();
            bound(global, "rolled back", &answer, wait.then_some(tenant)).await
        }
        Command::Promote(slot) => candidates::promote(global, slot).await,
        Command::Discard(slot) => candidates::discard(global, slot).await,
        Command::History(slot) => candidates::history(global, slot).await,
        Command::Report(slot) => candidates::report(global, slot).await,
        Command::Try(args) => dry_run::run(global, args).await,
        Command::Logs(args) => logs::run(global, args).await,
        Command::List { tenant } => library::list(global, tenant).await,
        Command::Show(named) => library::show(global, named).await,
        Command::Bindings { tenant } => bindings(global, tenant).await,
        Command::Events { tenant, new, count } => events(global, tenant, new, count).await,
        Command::Sign(args) => sign::sign(global, args).await,
        Command::Keys(command) => keys::run(global, command).await,
        Command::Grant(args) => grant::run(global, args).await,
        Command::Remove(named) => library::remove(global, named).await,
        Command::New(args) => match kit::become_it(global, "new", &args)? {},
        Command::Build(args) => match kit::become_it(global, "build", &args)? {},
        Command::Check(args) => match kit::become_it(global, "check", &args)? {},
        Command::Test(args) => match kit::become_it(global, "test", &args)? {},
        Command::Bench(args) => match kit::become_it(global, "bench", &args)? {},
        Command::Dev(args) => match kit::become_it(global, "dev", &args)? {},
    }
}

/// Uploads a component for all tenants; returns what the coordinator reports about it.
pub async fn upload(global: &Global, file: &Path) -> anyhow::Result<PluginInfo> {
    push::upload(global, &push::Sent { file, tenant: "", signature: None }, None).await
}

/// Binds a plugin, or removes a binding.
pub async fn bind(global: &Global, args: Bind) -> anyhow::Result<BindPluginResponse> {
    let request = bind_request(args).await?;
    let answer = client::plugins(global).await?.bind_plugin(within_long(global, request)).await;
    Ok(answer.map_err(Problem::of(Deed::Bind))?.into_inner())
}

/// Reads a plugin's configuration, if one is given.
async fn configuration(source: Option<Source>) -> anyhow::Result<Bytes> {
    match source {
        Some(source) => Ok(tokio::task::spawn_blocking(move || source.read(&CONFIGURATION)).await??),
        None => Ok(Bytes::new()),
    }
}

async fn bind_request(bind: Bind) -> anyhow::Result<BindPluginRequest> {
    let (mode, bounds) = (candidates::mode(&bind), candidates::bounds(&bind));
    let configuration = configuration(bind.configuration).await?;
    Ok(BindPluginRequest {
        tenant_id: bind.tenant.unwrap_or_default(),
        hook: spelling(Some(bind.hook)),
        plugin: bind.plugin.unwrap_or_default(),
        configuration,
        mode,
        on_fault: spelling(bind.on_fault),
        percent: bind.shadow.flatten().or(bind.canary),
        bounds,
        promote_after_seconds: bind.trial.promote_after,
        reason: bind.reason.unwrap_or_default(),
    })
}

/// Shows the answer or, if it is to be waited for, the migration that it has begun.
/// Says what is bound now. `waits_for`: the tenant, or "" for all, of which to wait until nothing goes by what was bound before.
async fn bound(
    global: &Global,
    verb: &str,
    response: &BindPluginResponse,
    waits_for: Option<String>,
) -> anyhow::Result<ExitCode> {
    match waits_for {
        Some(_) if !response.migration_id.is_empty() => {
            return watch::until_completed(global, response.migration_id.clone()).await;
        }
        Some(tenant) => fenced::until_fenced(global, &tenant).await?,
        None => {}
    }
    show(global.output, verb, response)
}

fn show(output: Output, verb: &str, response: &BindPluginResponse) -> anyhow::Result<ExitCode> {
    let (now, before) = (response.binding.as_ref(), response.previous.as_ref());
    match output {
        Output::Json => output::object(&json!({
            "outcome": verb,
            "binding": now.map(binding_json),
            "previous": before.map(binding_json),
            "migration_id": response.migration_id,
        }))?,
        Output::Text => {
            let before = match before {
                // What is in force has not changed.
                None if matches!(verb, "tried" | "discarded") => String::new(),
                None => " (nothing was bound before)".to_owned(),
                Some(before) => format!(" (before: {})", plugin_of(before)),
            };
            let now = now.map_or("nothing is bound now".to_owned(), |b| {
                format!("{} answers {} for {}", plugin_of(b), b.hook, tenant_of(b))
            });
            let moves = match response.migration_id.as_str() {
                "" => String::new(),
                id => format!("; records move, and until then keys are placed as before: witan migration watch {id}"),
            };
            output::line(&format!("{verb}: {now}{before}{}{moves}", candidates::beside(response)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn plugin_of(binding: &Binding) -> String {
    if binding.digest.is_empty() {
        return "the native rule".to_owned();
    }
    format!("{}@{} ({})", binding.name, binding.version, short(&binding.digest))
}

fn tenant_of(binding: &Binding) -> String {
    if binding.tenant_id.is_empty() { "every tenant".to_owned() } else { format!("tenant {}", binding.tenant_id) }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

async fn bindings(global: &Global, tenant: Option<String>) -> anyhow::Result<ExitCode> {
    let request = within(global, ListBindingsRequest { tenant_id: tenant.unwrap_or_default() });
    let answer = client::plugins(global).await?.list_bindings(request).await;
    let listed = answer.map_err(Problem::query)?.into_inner();
    let bindings = &listed.bindings;
    if global.output == Output::Json {
        let shown = json!({ "bindings": bindings.iter().map(binding_json).collect::<Vec<_>>() });
        output::object(&output::with(shown, fenced::fields(&listed)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TENANT", "HOOK", "PLUGIN", "FOLLOWS", "ON FAULT", "CALLS", "FAULTS", "STATE"]);
    for binding in bindings {
        table.row([
            if binding.tenant_id.is_empty() { "(all)".to_owned() } else { binding.tenant_id.clone() },
            binding.hook.clone(),
            plugin_of(binding),
            if binding.by_name { "name" } else { "digest" }.to_owned(),
            binding.on_fault.clone(),
            grouped(binding.calls),
            grouped(binding.faults),
            state(binding),
        ]);
    }
    table.print("no bindings; the native rules answer every hook")?;
    fenced::lines(&listed).iter().try_for_each(|line| output::line(line))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a binding answers, in a few words.
fn state(binding: &Binding) -> String {
    let (percent, tenths) = (binding.admitted_permille / 10, binding.admitted_permille % 10);
    let share = match tenths {
        0 => format!("{percent} %"),
        tenths => format!("{percent}.{tenths} %"),
    };
    match binding {
        Binding { broken, .. } if !broken.is_empty() => "cannot be loaded".to_owned(),
        Binding { breaker_open: true, tenant_id, breakers_open, .. } if tenant_id.is_empty() => {
            format!("breaker open for {breakers_open} tenants, tried with {share}")
        }
        Binding { breaker_open: true, .. } => format!("breaker open, tried with {share}"),
        _ => binding.mode.clone(),
    }
}

async fn events(global: &Global, tenant: Option<String>, new: bool, count: Option<u64>) -> anyhow::Result<ExitCode> {
    let mut client = client::plugins(global).await?;
    // No deadline: this runs until it is interrupted.
    let request = WatchPluginEventsRequest { recent: !new, tenant_id: tenant.unwrap_or_default() };
    let answer = client.watch_plugin_events(request).await;
    let mut events = answer.map_err(Problem::query)?.into_inner();
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = events.message().await.map_err(Problem::query)? else { break };
        match global.output {
            // One line each, even on a terminal: this is a stream, not one result.
            Output::Json => output::record(&event_json(&event))?,
            Output::Text => output::line(&event_text(&event))?,
        }
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn event_text(event: &PluginEvent) -> String {
    let mut text = format!("{}  {:<14}", output::moment(event.at_ms.saturating_mul(1000)), event.kind);
    let digest = if event.digest.is_empty() { String::new() } else { format!("({})", short(&event.digest)) };
    for part in [&event.name, &digest, &event.hook, &event.tenant_id, &event.reason] {
        if !part.is_empty() {
            text.push(' ');
            text.push_str(part);
        }
    }
    text
}

fn binding_json(binding: &Binding) -> Value {
    let configuration = output::value_fields(&binding.configuration);
    json!({
        "candidate": binding.candidate.as_deref().map(candidates::json),
        "tenant_id": binding.tenant_id,
        "hook": binding.hook,
        "digest": binding.digest,
        "name": binding.name,
        "version": binding.version,
        "configuration": configuration["value"],
        "configuration_encoding": configuration["value_encoding"],
        "on_fault": binding.on_fault,
        "mode": binding.mode,
        "number": binding.number,
        "by_name": binding.by_name,
        "calls": binding.calls,
        "remembered": binding.remembered,
        "faults": binding.faults,
        "breaker_open": binding.breaker_open,
        "broken": binding.broken,
        "breakers_open": binding.breakers_open,
        "admitted_permille": binding.admitted_permille,
    })
}

fn event_json(event: &PluginEvent) -> Value {
    json!({
        "at_ms": event.at_ms,
        "kind": event.kind,
        "digest": event.digest,
        "name": event.name,
        "tenant_id": event.tenant_id,
        "hook": event.hook,
        "reason": event.reason,
    })
}
