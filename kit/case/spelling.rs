//! How cases are spelled in JSON. What is misspelled is named with its place in the file.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, de::MapAccess, de::Visitor};
use witan_kernel::hook::{Hook, Operation, ReplicaState, ResolverQuestion, Shortfall, Sibling};
use witan_kernel::limit::{PLUGIN_CONFIGURATION_BYTES, VALUE_BYTES};
use witan_kernel::name::{Key, NodeId};
use witan_kernel::tenant::Level;

use super::model::{Asked, Case, Decision, Expected, Expects, Outcome};

/// Most replicas of a key, so also of a question about them.
const REPLICAS: usize = 5;

/// Bytes: a text, or an object whose field `base64` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Spelt(Bytes);

impl<'de> Deserialize<'de> for Spelt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Spelt;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, or {\"base64\": \"...\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Spelt, E> {
                Ok(Spelt(Bytes::copy_from_slice(text.as_bytes())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Spelt, A::Error> {
                let mut found = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "base64" || found.is_some() {
                        return Err(de::Error::unknown_field(&name, &["base64"]));
                    }
                    let bytes = STANDARD.decode(map.next_value::<String>()?);
                    found = Some(bytes.map_err(|error| de::Error::custom(format!("is not base64: {error}")))?);
                }
                found.map(|bytes| Spelt(Bytes::from(bytes))).ok_or_else(|| de::Error::missing_field("base64"))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// An error of the WIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Declined {
    InvalidInput,
    Unsupported,
    Internal,
}

impl Declined {
    fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid-input",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }
}

/// What cases of all hooks have.
trait Common {
    fn configuration(&self) -> &Spelt;
    fn refused(&self) -> Option<&String>;
    /// What is asked, unless the configuration is refused.
    fn expects(self) -> Result<Expects>;
}

macro_rules! case {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }, $expects:path) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            /// What the case is about, for people.
            #[serde(default, rename = "about")]
            _about: Option<String>,
            #[serde(default)]
            configuration: Spelt,
            refused: Option<String>,
            error: Option<Declined>,
            $($field: $type,)*
        }

        impl Common for $name {
            fn configuration(&self) -> &Spelt {
                &self.configuration
            }
            fn refused(&self) -> Option<&String> {
                self.refused.as_ref()
            }
            fn expects(self) -> Result<Expects> {
                $expects(self)
            }
        }
    };
}

case!(
    /// A case of a resolver.
    Resolver { key: Option<Spelt>, siblings: Option<Vec<SpeltSibling>>, verdict: Option<Verdict>, },
    conflict
);

case!(
    /// A case of a policy.
    Policy { question: Option<Question>, answer: Option<Answer>, },
    decision
);

case!(
    /// A case of a routing hook.
    Routing { key: Option<Spelt>, partition_key: Option<Spelt>, candidates: Option<Vec<Candidate>>, prefer: Option<Vec<u8>>, },
    routing
);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpeltSibling {
    value: Spelt,
    #[serde(default = "first")]
    time: u64,
}

fn first() -> u64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// The bytes of the merged value.
    Merged(Spelt),
    /// The index of a sibling.
    Pick(usize),
    KeepAll,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    operation: Op,
    level: Lvl,
    minimum: Option<Lvl>,
    replication_factor: u8,
    deadline_ms: Option<u32>,
    #[serde(default)]
    value_bytes: u32,
    replicas: Option<Vec<Replica>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Op {
    Read,
    Write,
    Delete,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Lvl {
    One,
    Quorum,
    All,
}

impl From<Lvl> for Level {
    fn from(level: Lvl) -> Self {
        match level {
            Lvl::One => Self::One,
            Lvl::Quorum => Self::Quorum,
            Lvl::All => Self::All,
        }
    }
}

/// A replica; what is absent is that of a healthy one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Replica {
    reachable: bool,
    latency_p50_us: u32,
    latency_p99_us: u32,
    in_flight: u32,
}

impl Default for Replica {
    fn default() -> Self {
        Self { reachable: true, latency_p50_us: 400, latency_p99_us: 2_000, in_flight: 1 }
    }
}

impl From<Replica> for ReplicaState {
    fn from(replica: Replica) -> Self {
        let Replica { reachable, latency_p50_us, latency_p99_us, in_flight } = replica;
        Self { reachable, latency_p50_us, latency_p99_us, in_flight }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    required: Option<u8>,
    deadline_ms: Option<u32>,
    hedge_after_us: Option<Hedge>,
    shortfall: Option<Short>,
}

/// Microseconds, or `"native"`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Hedge {
    After(u32),
    Native(Native),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Native {
    Native,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Short {
    Fail,
    Accept(u8),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Candidate {
    node: String,
    #[serde(default)]
    state: Replica,
}

/// Reads the case of a hook from the content of a file.
pub fn parse(name: &str, hook: Hook, text: &[u8]) -> Result<Case> {
    match hook {
        Hook::ConflictResolver => case(name, read::<Resolver>(text)?),
        Hook::ConsistencyPolicy => case(name, read::<Policy>(text)?),
        Hook::RoutingHook => case(name, read::<Routing>(text)?),
    }
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| match error.path().to_string().as_str() {
            "." => anyhow::anyhow!("{}", error.inner()),
            path => anyhow::anyhow!("{path}: {}", error.inner()),
        })?;
    reader.end().context("after the case")?;
    Ok(value)
}

fn case(name: &str, spelt: impl Common) -> Result<Case> {
    let configuration = spelt.configuration().0.clone();
    let (bytes, most) = (configuration.len(), PLUGIN_CONFIGURATION_BYTES);
    ensure!(bytes <= most, "configuration has {bytes} bytes; at most {most} are allowed");
    let expects = match spelt.refused().cloned() {
        Some(part) => Expects::Refused(part),
        None => spelt.expects()?,
    };
    Ok(Case { name: name.to_owned(), configuration, expects })
}

/// What is expected: an answer, or the error that is given instead.
fn expected<T>(answer: Option<T>, error: Option<Declined>, field: &str) -> Result<Expected<T>> {
    match (answer, error) {
        (Some(answer), None) => Ok(Expected::Answer(answer)),
        (None, Some(error)) => Ok(Expected::Error(error.as_str())),
        (Some(_), Some(_)) => anyhow::bail!("{field} and error are given: give one of them"),
        (None, None) => anyhow::bail!("{field} is missing: what the plugin has to answer, or error instead"),
    }
}

fn conflict(spelt: Resolver) -> Result<Expects> {
    let siblings = spelt.siblings.context("siblings is missing: the values in conflict")?;
    ensure!(!siblings.is_empty(), "siblings is empty: a conflict has at least one value");
    let siblings: Vec<Sibling> = siblings.into_iter().map(|it| Sibling { value: it.value.0, time: it.time }).collect();
    if let Some(at) = siblings.iter().position(|it| it.value.len() > VALUE_BYTES) {
        anyhow::bail!("siblings[{at}].value has more than {VALUE_BYTES} bytes, which is the largest value");
    }
    let outcome = match spelt.verdict {
        Some(Verdict::Merged(value)) => Some(Outcome::Value(value.0)),
        Some(Verdict::Pick(at)) => {
            let picked = siblings.get(at);
            let picked = picked.with_context(|| format!("verdict.pick: there is no sibling {at}, counted from 0"))?;
            Some(Outcome::Value(picked.value.clone()))
        }
        Some(Verdict::KeepAll) => Some(Outcome::KeepAll),
        None => None,
    };
    let key = spelt.key.map_or(Bytes::from_static(b"key"), |key| key.0);
    let key = Key::new(key).context("key")?;
    Ok(Expects::Verdict(ResolverQuestion { key, siblings }, expected(outcome, spelt.error, "verdict")?))
}

fn decision(spelt: Policy) -> Result<Expects> {
    let question = spelt.question.context("question is missing: what the policy is asked")?;
    let factor = question.replication_factor;
    ensure!((1..=REPLICAS as u8).contains(&factor), "question.replication_factor is {factor}; use 1 to {REPLICAS}");
    let replicas = question.replicas.unwrap_or_else(|| vec![Replica::default(); usize::from(factor)]);
    ensure!(replicas.len() <= REPLICAS, "question.replicas has {} replicas; use at most {REPLICAS}", replicas.len());
    let asked = Asked {
        operation: match question.operation {
            Op::Read => Operation::Read,
            Op::Write => Operation::Write,
            Op::Delete => Operation::Delete,
        },
        level: question.level.into(),
        minimum: question.minimum.unwrap_or(Lvl::One).into(),
        replication_factor: factor,
        deadline_ms: question.deadline_ms.unwrap_or(1_000),
        value_bytes: question.value_bytes,
        replicas: replicas.into_iter().map(ReplicaState::from).collect(),
    };
    let answer = spelt.answer.map(|it| Decision {
        required: it.required,
        deadline_ms: it.deadline_ms,
        hedge_after_us: it.hedge_after_us.map(|hedge| match hedge {
            Hedge::After(micros) => Some(micros),
            Hedge::Native(Native::Native) => None,
        }),
        shortfall: it.shortfall.map(|it| match it {
            Short::Fail => Shortfall::Fail,
            Short::Accept(answers) => Shortfall::Accept(answers),
        }),
    });
    Ok(Expects::Decision(Box::new(asked), expected(answer, spelt.error, "answer")?))
}

fn routing(spelt: Routing) -> Result<Expects> {
    let key = spelt.key.context("key is missing: what is placed")?.0;
    Key::new(key.clone()).context("key")?;
    let Some(candidates) = spelt.candidates else {
        ensure!(spelt.prefer.is_none(), "prefer is given without candidates: the replicas to be ordered");
        let partition = spelt.partition_key.map(|key| key.0);
        return Ok(Expects::Partition(key, expected(partition, spelt.error, "partition_key")?));
    };
    ensure!(spelt.partition_key.is_none(), "partition_key and candidates are given: make two cases of them");
    ensure!(candidates.len() <= REPLICAS, "candidates has {} replicas; use at most {REPLICAS}", candidates.len());
    let node = |(at, it): (usize, Candidate)| {
        let node = NodeId::new(&it.node).with_context(|| format!("candidates[{at}].node"))?;
        Ok((node, it.state.into()))
    };
    let replicas = candidates.into_iter().enumerate().map(node).collect::<Result<Vec<_>>>()?;
    Ok(Expects::Order(key, replicas, expected(spelt.prefer, spelt.error, "prefer")?))
}

#[cfg(test)]
mod tests;
