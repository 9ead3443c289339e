//! Converts written values to typed ones, by the kind of the key.

use serde_json::{Value, json};

use super::keys::Kind;
use super::suggest;
use super::value::{Misspelled, duration, duration_or_none, size, whole_path};

/// Most entries in a list: more than any cluster has nodes.
const ENTRIES: usize = 1000;

/// Reads a value of `kind`. Every kind can be written as text, since environment variables are text.
pub(super) fn convert(kind: Kind, value: &Value) -> Result<Value, String> {
    match (kind, value) {
        (Kind::Path, Value::String(text)) => {
            whole_path(text).map(|path| json!(path)).map_err(|error| error.to_string())
        }
        (Kind::Text | Kind::Secret, Value::String(text)) => Ok(json!(text)),
        (Kind::Text | Kind::Secret | Kind::Path, Value::Number(_) | Value::Bool(_)) => {
            Err("is text: write it in quotes".to_owned())
        }
        (Kind::Text | Kind::Secret | Kind::Path, _) => Err("must be text".to_owned()),
        (Kind::Flag, Value::Bool(flag)) => Ok(json!(flag)),
        (Kind::Flag, Value::String(text)) if text == "true" || text == "false" => Ok(json!(text == "true")),
        (Kind::Flag, other) => Err(format!("{} is neither true nor false", shown(other))),
        (Kind::Number(from, to), value) => whole(value, from, to),
        (Kind::Share, value) => share(value),
        (Kind::Time, Value::String(text)) => duration(text).map(|_| json!(text)).map_err(|error| about(text, &error)),
        (Kind::TimeOrNever, Value::String(text)) => {
            duration_or_none(text).map(|_| json!(text)).map_err(|error| about(text, &error))
        }
        (Kind::TimeOrNever, Value::Number(number)) if number.as_u64() == Some(0) => Ok(json!("0")),
        (Kind::Time | Kind::TimeOrNever, other) => {
            Err(format!("{} has no unit: write 500ms, 10s, 5m or 1h", shown(other)))
        }
        (Kind::Size, Value::Number(number)) if number.is_u64() => Ok(json!(number)),
        (Kind::Size, Value::String(text)) => size(text).map(|bytes| json!(bytes)).map_err(|error| about(text, &error)),
        (Kind::Size, other) => Err(format!("{} is not a number of bytes, such as 64MiB", shown(other))),
        (Kind::Choice(choices), value) => choice(value, choices),
        (Kind::Texts, Value::String(text)) => Ok(text.split(',').map(|part| json!(part.trim())).collect()),
        (Kind::Texts, Value::Array(parts)) if parts.len() <= ENTRIES && parts.iter().all(Value::is_string) => {
            Ok(value.clone())
        }
        (Kind::Texts, _) => Err(format!("must be a list of at most {ENTRIES} texts")),
        (Kind::Nodes, Value::String(text)) => text.split(',').map(|node| node_value(node.trim())).collect(),
        (Kind::Nodes, Value::Array(nodes)) if nodes.len() <= ENTRIES => Ok(value.clone()),
        (Kind::Nodes, _) => Err(format!("must be a list of at most {ENTRIES} nodes, each {{id, host, port}}")),
    }
}

/// A value in a message, shortened: enough to find it in the file.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
        other => other.to_string(),
    };
    text.chars().take(40).collect()
}

fn about(text: &str, error: &Misspelled) -> String {
    format!("{}: {error}", shown(&json!(text)))
}

fn whole(value: &Value, from: u64, to: u64) -> Result<Value, String> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if (from..=to).contains(&number) => Ok(json!(number)),
        _ if to == u64::MAX => Err(format!("{} is not a whole number from {from}", shown(value))),
        _ => Err(format!("{} is not a whole number from {from} to {to}", shown(value))),
    }
}

fn share(value: &Value) -> Result<Value, String> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if (0.0..=1.0).contains(&number) => Ok(json!(number)),
        _ => Err(format!("{} is not a number from 0 to 1", shown(value))),
    }
}

fn choice(value: &Value, choices: &[&str]) -> Result<Value, String> {
    let known = choices.join(", ");
    let Value::String(text) = value else { return Err(format!("{} is not one of: {known}", shown(value))) };
    if choices.contains(&text.as_str()) {
        return Ok(json!(text));
    }
    Err(match suggest::nearest(text, choices.iter().copied()) {
        Some(near) => format!("{} is not one of {known}; did you mean {near}?", shown(value)),
        None => format!("{} is not one of: {known}", shown(value)),
    })
}

/// A text that should have been a storage node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not ID=HOST:PORT, as in node-1=127.0.0.1:50052")]
pub struct NotANode(String);

/// Reads "node-1=127.0.0.1:50052" as id, host and port.
///
/// # Errors
/// When the text does not have this form.
pub fn node(text: &str) -> Result<(String, String, u16), NotANode> {
    let wrong = || NotANode(text.to_owned());
    let (id, address) = text.split_once('=').ok_or_else(wrong)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((id.to_owned(), host.to_owned(), port))
}

fn node_value(text: &str) -> Result<Value, String> {
    let (id, host, port) = node(text).map_err(|error| error.to_string())?;
    Ok(json!({ "id": id, "host": host, "port": port }))
}
