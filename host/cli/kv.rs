//! `witan kv`: read, write and delete single keys, and list them.

pub mod list;

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::Status;
use witan_kernel::limit::VALUE_BYTES;
use witan_kernel::tenant::Level;
use witan_wire::v1::{
    DeleteKeyValueRequest, PluginFault, ReadKeyValueRequest, ReadKeyValueResponse, VectorClock, VectorClockEntry,
    WriteKeyValueRequest, WriteKeyValueResponse,
};

use super::Global;
use super::args::{self, Limit, Source, Token};
use super::choice::{self, spelling};
use super::client::{self, NO_SUCH_KEY, Problem, within};
use super::deed::Deed;
use super::output::{self, Output};

/// Limit of a value: the API's.
const VALUE: Limit = Limit { field: "VALUE", bytes: VALUE_BYTES, remedy: "store it in parts, under several keys" };

/// Shown below the help.
pub const EXAMPLES: &str = "\
A key belongs to a tenant. A write without a context is concurrent with all other writes; with the context of a read it \
replaces what that read returned. Set WITAN_TENANT to avoid repeating --tenant.

Examples:
  witan kv put -t demo greeting hello
  witan kv get -t demo greeting
  witan kv delete -t demo greeting
  export WITAN_TENANT=demo";

const GET_EXAMPLES: &str = "\
The value goes to standard output exactly as it is stored. When the key has concurrent values and no resolver has \
merged them, all of them are shown, with the context for a write that replaces them. Exit code 3: there is no value.

Examples:
  witan kv get -t demo photo > photo.jpg
  witan kv get -t demo cart --consistency all --details
  witan kv get -t demo cart --output json | jq -r .context";

const PUT_EXAMPLES: &str = "\
The value is the argument itself, @FILE for the content of a file (@@ for a text that starts with @), or - for standard \
input; at most 10 MiB. The same write with the same --idempotency-key takes effect once within the tenant's idempotency \
retention (24 hours by default), however often it is sent.

Examples:
  witan kv put -t demo greeting hello
  witan kv put -t demo photo @photo.jpg
  date | witan kv put -t demo now -
  context=$(witan kv get -t demo cart --output json | jq -r .context)
  witan kv put -t demo cart '{\"apples\":2}' --context \"$context\"";

const DELETE_EXAMPLES: &str =
    "Without a context, a quorum is read first and the values it returns are deleted; writes concurrent with that are kept.

Examples:
  witan kv delete -t demo greeting
  witan kv delete -t demo greeting --consistency all --idempotency-key removal-17";

/// Subcommands of `kv`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read a key
    #[command(after_help = GET_EXAMPLES)]
    Get(Get),
    /// Write a value
    #[command(after_help = PUT_EXAMPLES)]
    Put(Put),
    /// Delete a key
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(Delete),
    /// List the keys that have a value
    #[command(after_help = list::EXAMPLES)]
    List(list::List),
}

/// The key, and how many replicas must answer.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The tenant
    #[arg(short, long, env = "WITAN_TENANT", value_name = "TENANT")]
    pub tenant: String,
    /// The key: 1 to 1024 bytes
    pub key: String,
    /// How many replicas must answer [default: the tenant's]
    #[arg(short, long, value_parser = choice::level())]
    pub consistency: Option<Level>,
}

/// Options of a change.
#[derive(Debug, clap::Args)]
pub struct Change {
    /// Makes retries safe: the same change with the same key takes effect once within the tenant's retention (24 hours by default)
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// The context of the last read, in base64, or in hexadecimal after "hex:"
    #[arg(long, value_name = "TOKEN", value_parser = Token::parse)]
    pub context: Option<Token>,
}

impl Change {
    /// For `map_err`: the failure of a change with these options.
    fn failed(&self) -> impl Fn(Status) -> Problem + use<> {
        Problem::of(Deed::Change { named: self.idempotency_key.is_some() })
    }
}

/// Arguments of `kv get`.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// The key.
    #[command(flatten)]
    pub place: Place,
    /// Also print to standard error the context, the clock, and which resolver decided
    #[arg(short, long)]
    pub details: bool,
}

/// Arguments of `kv put`.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// The key.
    #[command(flatten)]
    pub place: Place,
    /// The value, @FILE, or - for standard input
    #[arg(value_parser = Source::parse, allow_hyphen_values = true)]
    pub value: Source,
    /// How to change it.
    #[command(flatten)]
    pub change: Change,
}

/// Arguments of `kv delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// The key.
    #[command(flatten)]
    pub place: Place,
    /// How to change it.
    #[command(flatten)]
    pub change: Change,
}

/// Runs a subcommand of `kv`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Get(get) => read(global, get).await,
        Command::Put(put) => write(global, put).await,
        Command::Delete(delete) => remove(global, delete).await,
        Command::List(list) => list::run(global, list).await,
    }
}

async fn read(global: &Global, get: Get) -> anyhow::Result<ExitCode> {
    let Get { place, details } = get;
    let request = ReadKeyValueRequest {
        tenant_id: place.tenant,
        key: place.key.clone(),
        consistency: spelling(place.consistency),
    };
    let answer = client::coordinator(global).await?.read_key_value(within(global, request)).await;
    match answer {
        Ok(response) => found(global.output, details, &response.into_inner())?,
        Err(status) if client::has_reason(&status, "KEY_NOT_FOUND") => {
            missing(global.output, details, &place.key, &status)?;
            return Ok(ExitCode::from(NO_SUCH_KEY));
        }
        Err(status) => return Err(Problem::of(Deed::Read)(status).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn found(output: Output, details: bool, response: &ReadKeyValueResponse) -> anyhow::Result<()> {
    if output == Output::Json {
        output::object(&found_json(response))?;
        return Ok(());
    }
    if response.siblings.is_empty() {
        output::value(&response.value)?;
    } else {
        siblings(response)?;
    }
    if let Some(fault) = &response.resolver_fault {
        output::note(&format!("the conflict resolver has not decided: {}", fault.reason));
    }
    if let Some(fault) = &response.policy_fault {
        output::note(&gave_way(fault));
    }
    if details || !response.siblings.is_empty() {
        output::note(&format!("context: {}", args::base64(&response.context)));
    }
    if details {
        output::note(&format!("resolved by: {}", response.resolved_by));
        output::note(&format!("clock: {}", clock_text(response.vector_clock.as_ref())));
    }
    Ok(())
}

fn gave_way(fault: &PluginFault) -> String {
    format!("the consistency policy gave way to the native rule: {}", fault.reason)
}

fn fault_json(fault: Option<&PluginFault>) -> Value {
    fault.map_or(Value::Null, |fault| json!({ "plugin": fault.plugin, "kind": fault.kind, "reason": fault.reason }))
}

fn siblings(response: &ReadKeyValueResponse) -> std::io::Result<()> {
    let count = response.siblings.len();
    output::note(&format!("the key has {count} concurrent values; write the one to keep with the --context below"));
    let mut text = String::new();
    for (at, sibling) in (1..).zip(&response.siblings) {
        let (size, written) = (sibling.value.len(), output::moment(sibling.written_at_us));
        text += &format!("--- sibling {at} of {count}, {size} bytes, written {written}\n");
        text += &output::shown(&sibling.value);
        if at < count {
            text.push('\n');
        }
    }
    output::text(&text)
}

fn missing(output: Output, details: bool, key: &str, status: &Status) -> std::io::Result<()> {
    let context = client::not_found_context(status).map(|context| args::base64(&context));
    match output {
        Output::Json => output::object(&json!({ "key": key, "found": false, "value": null, "context": context })),
        Output::Text => {
            output::note(&format!("no value: {}", status.message()));
            if let Some(context) = context.filter(|_| details) {
                output::note(&format!("context: {context}"));
            }
            Ok(())
        }
    }
}

fn found_json(response: &ReadKeyValueResponse) -> Value {
    let siblings: Vec<Value> = response
        .siblings
        .iter()
        .map(|sibling| {
            output::with(output::value_fields(&sibling.value), json!({ "written_at_us": sibling.written_at_us }))
        })
        .collect();
    let value = match siblings.is_empty() {
        true => output::value_fields(&response.value),
        false => json!({ "value": null, "value_encoding": null }),
    };
    let rest = json!({
        "key": response.key,
        "found": true,
        "context": args::base64(&response.context),
        "siblings": siblings,
        "resolved_by": response.resolved_by,
        "resolver_fault": fault_json(response.resolver_fault.as_ref()),
        "policy_fault": fault_json(response.policy_fault.as_ref()),
        "vector_clock": clock_json(response.vector_clock.as_ref()),
    });
    output::with(rest, value)
}

async fn write(global: &Global, put: Put) -> anyhow::Result<ExitCode> {
    let Put { place, value, change } = put;
    let failed = change.failed();
    let value = tokio::task::spawn_blocking(move || value.read(&VALUE)).await??;
    let request = WriteKeyValueRequest {
        tenant_id: place.tenant,
        key: place.key,
        value,
        consistency: spelling(place.consistency),
        idempotency_key: change.idempotency_key.unwrap_or_default(),
        context: change.context.map(|token| token.0).unwrap_or_default(),
    };
    let answer = client::coordinator(global).await?.write_key_value(within(global, request)).await;
    changed(global.output, "written", &answer.map_err(failed)?.into_inner())
}

async fn remove(global: &Global, delete: Delete) -> anyhow::Result<ExitCode> {
    let Delete { place, change } = delete;
    let failed = change.failed();
    let request = DeleteKeyValueRequest {
        tenant_id: place.tenant,
        key: place.key,
        consistency: spelling(place.consistency),
        idempotency_key: change.idempotency_key.unwrap_or_default(),
        context: change.context.map(|token| token.0).unwrap_or_default(),
    };
    let answer = client::coordinator(global).await?.delete_key_value(within(global, request)).await;
    changed(global.output, "deleted", &answer.map_err(failed)?.into_inner())
}

fn changed(output: Output, verb: &str, response: &WriteKeyValueResponse) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => output::object(&json!({
            "key": response.key,
            "outcome": verb,
            "consistency": response.consistency,
            "replicas": response.replica_count,
            "idempotency_key": response.idempotency_key,
            "is_duplicate": response.is_duplicate,
            "context": args::base64(&response.context),
            "vector_clock": clock_json(response.vector_clock.as_ref()),
            "policy_fault": fault_json(response.policy_fault.as_ref()),
        }))?,
        Output::Text => {
            let duplicate = if response.is_duplicate { "; a repetition, which took effect before" } else { "" };
            let (key, level, replicas) = (&response.key, &response.consistency, response.replica_count);
            output::line(&format!("{verb} {key} on {replicas} replicas so far (level {level}){duplicate}"))?;
            if let Some(fault) = &response.policy_fault {
                output::note(&gave_way(fault));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn clock_json(clock: Option<&VectorClock>) -> Value {
    let entries = clock.map(|clock| clock.entries.as_slice()).unwrap_or_default();
    let entry = |entry: &VectorClockEntry| {
        json!({
            "coordinator_node_id": entry.coordinator_node_id,
            "logical_timestamp": entry.logical_timestamp,
        })
    };
    entries.iter().map(entry).collect()
}

fn clock_text(clock: Option<&VectorClock>) -> String {
    let entries = clock.map(|clock| clock.entries.as_slice()).unwrap_or_default();
    let entry = |entry: &VectorClockEntry| format!("{}:{}", entry.coordinator_node_id, entry.logical_timestamp);
    entries.iter().map(entry).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use witan_wire::v1::{ReadKeyValueResponse, Sibling};

    use super::found_json;

    #[test]
    fn json_of_a_read_has_the_same_fields_with_and_without_siblings() {
        let single = ReadKeyValueResponse { value: Bytes::from_static(b"v"), ..ReadKeyValueResponse::default() };
        let sibling = Sibling { value: Bytes::from_static(&[255]), written_at_us: 7 };
        let several = ReadKeyValueResponse { siblings: vec![sibling], ..ReadKeyValueResponse::default() };
        let (single, several) = (found_json(&single), found_json(&several));
        let fields = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(&single), fields(&several));
        assert_eq!(single["value"], "v");
        assert!(several["value"].is_null());
        assert_eq!(several["siblings"][0]["value_encoding"], "base64");
    }
}
