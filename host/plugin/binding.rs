//! Bindings: which plugin answers for which tenant, and the format in which a binding is stored.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use witan_kernel::candidate::{Bounds, Mode, Trial};
use witan_kernel::hexadecimal;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
pub use witan_kernel::port::PluginStore;
use witan_kernel::port::{Slot, StoreError};

use crate::digest::Digest;
use crate::limit;

/// What a fault of a consistency policy means for the request. (A fault of a resolver always keeps all siblings, and a fault of a
/// partition key always fails the request: anything else would lose data.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFault {
    /// The native rule applies.
    #[default]
    Native,
    /// The request fails.
    Fail,
}

impl OnFault {
    /// The value in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fail => "fail",
        }
    }

    /// Reads the value in the API; "" is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "native" => Some(Self::Native),
            "fail" => Some(Self::Fail),
            _ => None,
        }
    }
}

/// What precedes the name of a plugin that must be the operator's.
const OF_OPERATOR: &str = "operator/";

/// How a binding refers to its plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The component with this digest.
    Digest(Digest),
    /// The component with this name, and this version if one is given. A binding by name follows when the file of that name in the
    /// watched folder is replaced (except for routing hooks, since that would move keys).
    Name {
        /// The plugin's name.
        name: String,
        /// The plugin's version; `None` for the newest.
        version: Option<String>,
        /// Whether it must be the operator's. Otherwise a tenant's own is meant, or the operator's if the tenant has none of this name.
        of_operator: bool,
    },
}

impl Reference {
    /// Reads a digest (64 hexadecimal digits, optionally after `sha256:`), `name` or `name@version`; `operator/` before a name asks for
    /// the operator's.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(digest) = Digest::parse(text) {
            return Some(Self::Digest(digest));
        }
        let (of_operator, text) = match text.strip_prefix(OF_OPERATOR) {
            Some(name) => (true, name),
            None => (false, text),
        };
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let good = is_name(name) && version.is_none_or(is_version);
        good.then(|| Self::Name { name: name.to_owned(), version: version.map(str::to_owned), of_operator })
    }

    /// The same plugin without saying whose it is, as it is stored: the names of the operator's plugins are no tenant's.
    pub(crate) fn of_anybody(self) -> Self {
        match self {
            Self::Name { name, version, .. } => Self::Name { name, version, of_operator: false },
            Self::Digest(digest) => Self::Digest(digest),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Name { name, version, of_operator } => {
                f.write_str(if *of_operator { OF_OPERATOR } else { "" })?;
                f.write_str(name)?;
                version.iter().try_for_each(|version| write!(f, "@{version}"))
            }
        }
    }
}

/// True for 1 to 64 of a-z, 0-9 and '-'.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=limit::NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// True for 1 to 64 of a-z, A-Z, 0-9, '.', '-' and '+'.
pub(crate) fn is_version(text: &str) -> bool {
    (1..=limit::NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
}

/// One version of a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingVersion {
    /// Number of the version: one more than that of the version before it.
    pub number: u64,
    /// The component.
    pub digest: Digest,
    /// The reference by which the component was requested.
    pub reference: Reference,
    /// `name@version` of the plugin, for a person.
    pub plugin: String,
    /// The plugin's configuration; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault of the plugin means for a request.
    pub on_fault: OnFault,
}

/// A binding as it is stored: one per tenant and hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingRecord {
    /// The tenant; `None` for the default of tenants without a binding.
    pub tenant: Option<TenantId>,
    /// The hook that the plugin answers.
    pub hook: Hook,
    /// The version in force.
    pub current: BindingVersion,
    /// Earlier versions for rollback, the newest last. At most [`limit::HISTORY`].
    pub previous: Vec<BindingVersion>,
    /// For a binding by name: the component of that name in the watched folder at the last change, so that the file that a rollback
    /// went back from does not undo the rollback.
    pub followed: Option<Digest>,
}

/// A version that is tried beside the one in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateRecord {
    /// The version. Its number is the one that it has if it is put in force.
    pub version: BindingVersion,
    /// How it is tried.
    pub trial: Trial,
}

/// By what keys are placed in one generation of a tenant's rows. Immutable once it is recorded: rows were placed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// The generation, as the tenant's entry names it.
    pub generation: u32,
    /// The routing hook with its configuration; `None`: the tenant has none of its own, so that the default's or else the native rule
    /// places its keys. (The default changes only while nothing is stored.)
    pub by: Option<BindingVersion>,
}

impl Partitioning {
    /// Whether keys are placed by the same component with the same configuration.
    pub fn is_by(&self, other: Option<&BindingVersion>) -> bool {
        same_hook(self.by.as_ref(), other)
    }
}

/// Whether two versions place each key alike.
pub(crate) fn same_hook(one: Option<&BindingVersion>, other: Option<&BindingVersion>) -> bool {
    let of = |version: &BindingVersion| (version.digest, version.configuration.clone());
    one.map(of) == other.map(of)
}

/// All that is stored of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRecord {
    /// The slot.
    pub slot: Slot,
    /// The binding, if there is one.
    pub bound: Option<BindingRecord>,
    /// Of a tenant's routing hook: by what keys are placed in each generation that the tenant's entry may name, by generation. Empty
    /// before the first swap: then there is one generation, 0, whose keys are placed by what is bound. At most [`limit::PARTITIONS`].
    pub partitions: Vec<Partitioning>,
    /// What is tried beside the version in force. Any change of that version ends the trial.
    pub candidate: Option<CandidateRecord>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    number: u64,
    digest: String,
    reference: String,
    plugin: String,
    configuration: String,
    on_fault: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// The layout's version: 1, or 2 if there are partitions, or 3 if there is a candidate.
    v: u32,
    tenant: Option<String>,
    hook: String,
    current: Option<StoredVersion>,
    previous: Vec<StoredVersion>,
    followed: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    partitions: Vec<StoredPartitioning>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    candidate: Option<StoredCandidate>,
}

#[derive(Serialize, Deserialize)]
struct StoredCandidate {
    version: StoredVersion,
    mode: String,
    percent: u8,
    began_ms: u64,
    step_ms: u64,
    promote_after_s: Option<u32>,
    fault_permille: u32,
    refused_permille: u32,
    p99_us: Option<u32>,
    differing_permille: u32,
    window_s: u32,
    least_answers: u32,
    steps: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct StoredPartitioning {
    generation: u32,
    by: Option<StoredVersion>,
}

impl BindingRecord {
    /// The slot of the binding.
    pub fn slot(&self) -> Slot {
        Slot { tenant: self.tenant.clone(), hook: self.hook }
    }
}

impl SlotRecord {
    /// A binding's, without partitions.
    pub fn of(bound: BindingRecord) -> Self {
        Self { slot: bound.slot(), bound: Some(bound), partitions: Vec::new(), candidate: None }
    }

    /// The version in force.
    pub fn current(&self) -> Option<&BindingVersion> {
        self.bound.as_ref().map(|bound| &bound.current)
    }

    /// By what keys are placed in a generation; `None` if that is not known.
    pub fn partitioning(&self, generation: u32) -> Option<&Partitioning> {
        self.partitions.iter().find(|it| it.generation == generation)
    }

    /// The components that it needs.
    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        let bound = self.bound.iter().flat_map(|bound| bound.previous.iter().chain([&bound.current]));
        let placing = self.partitions.iter().filter_map(|it| it.by.as_ref());
        let tried = self.candidate.iter().map(|candidate| &candidate.version);
        bound.chain(placing).chain(tried).map(|version| version.digest)
    }

    /// The record as JSON: in version 1 of its layout as long as there are no partitions and no candidate, so that earlier programs read
    /// it.
    pub fn encode(&self) -> String {
        let bound = self.bound.as_ref();
        let stored = Stored {
            v: match (&self.candidate, self.partitions.is_empty()) {
                (Some(_), _) => 3,
                (None, false) => 2,
                (None, true) => 1,
            },
            tenant: self.slot.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
            hook: self.slot.hook.as_str().to_owned(),
            current: bound.map(|bound| store_version(&bound.current)),
            previous: bound.map(|bound| bound.previous.iter().map(store_version).collect()).unwrap_or_default(),
            followed: bound.and_then(|bound| bound.followed).map(|digest| digest.to_string()),
            partitions: self.partitions.iter().map(store_partitioning).collect(),
            candidate: self.candidate.as_ref().map(store_candidate),
        };
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote, in this or an earlier version of the layout.
    pub fn decode(text: &str) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("a plugin binding's {what}"));
        let stored: Stored = serde_json::from_str(text).map_err(|error| damaged(&format!("record: {error}")))?;
        if !(1..=3).contains(&stored.v) {
            return Err(damaged(&format!("layout {} is not known; it is newer than this program", stored.v)));
        }
        let digest = |text: &str| Digest::parse(text).ok_or_else(|| damaged("digest"));
        let version = |it: &StoredVersion| read_version(it).map_err(damaged);
        let tenant = stored.tenant.map(TenantId::new).transpose().map_err(|error| damaged(&error.to_string()))?;
        let hook = Hook::parse(&stored.hook).ok_or_else(|| damaged("hook"))?;
        let current = stored.current.as_ref().map(version).transpose()?;
        if current.is_none() && stored.partitions.is_empty() {
            return Err(damaged("version in force: there is none"));
        }
        let previous = stored.previous.iter().map(version).collect::<Result<_, _>>()?;
        let followed = stored.followed.as_deref().map(digest).transpose()?;
        let bound = current.map(|current| BindingRecord { tenant: tenant.clone(), hook, current, previous, followed });
        let partitioning = |it: &StoredPartitioning| {
            Ok::<_, StoreError>(Partitioning {
                generation: it.generation,
                by: it.by.as_ref().map(version).transpose()?,
            })
        };
        let partitions = stored.partitions.iter().map(partitioning).collect::<Result<_, _>>()?;
        let tried =
            |it: &StoredCandidate| read_candidate(it, version(&it.version)?).ok_or_else(|| damaged("candidate"));
        let candidate = stored.candidate.as_ref().map(tried).transpose()?;
        Ok(Self { slot: Slot { tenant, hook }, bound, partitions, candidate })
    }
}

impl BindingVersion {
    /// The version as JSON, for coordinators that are to load it.
    pub(crate) fn encode(&self) -> String {
        serde_json::to_string(&store_version(self)).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn decode(text: &str) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("a version that is to be loaded: its {what}"));
        let stored = serde_json::from_str(text).map_err(|error| damaged(&format!("text: {error}")))?;
        read_version(&stored).map_err(damaged)
    }

    /// The plugin's name, and its version.
    pub fn name_and_version(&self) -> (&str, &str) {
        self.plugin.rsplit_once('@').unwrap_or((&self.plugin, ""))
    }
}

/// The version, or which of its parts is damaged.
fn read_version(it: &StoredVersion) -> Result<BindingVersion, &'static str> {
    Ok(BindingVersion {
        number: it.number,
        digest: Digest::parse(&it.digest).ok_or("digest")?,
        reference: Reference::parse(&it.reference).ok_or("reference")?,
        plugin: it.plugin.clone(),
        configuration: hexadecimal::decode(&it.configuration).ok_or("configuration")?.into(),
        on_fault: OnFault::parse(&it.on_fault).ok_or("on_fault")?,
    })
}

fn store_candidate(it: &CandidateRecord) -> StoredCandidate {
    let Trial { mode, percent, bounds, promote_after_s, began_ms, step_ms } = &it.trial;
    StoredCandidate {
        version: store_version(&it.version),
        mode: mode.as_str().to_owned(),
        percent: *percent,
        began_ms: *began_ms,
        step_ms: *step_ms,
        promote_after_s: *promote_after_s,
        fault_permille: bounds.fault_permille,
        refused_permille: bounds.refused_permille,
        p99_us: bounds.p99_us,
        differing_permille: bounds.differing_permille,
        window_s: bounds.window_s,
        least_answers: bounds.least_answers,
        steps: bounds.steps.clone(),
    }
}

/// `None` for what is no trial.
fn read_candidate(it: &StoredCandidate, version: BindingVersion) -> Option<CandidateRecord> {
    let bounds = Bounds {
        fault_permille: it.fault_permille,
        refused_permille: it.refused_permille,
        p99_us: it.p99_us,
        differing_permille: it.differing_permille,
        window_s: it.window_s,
        least_answers: it.least_answers,
        steps: it.steps.clone(),
    };
    let (began_ms, step_ms) = (it.began_ms, it.step_ms);
    let (mode, promote_after_s) = (Mode::parse(&it.mode)?, it.promote_after_s);
    let trial = Trial { mode, percent: it.percent, bounds, promote_after_s, began_ms, step_ms }.checked().ok()?;
    Some(CandidateRecord { version, trial })
}

fn store_partitioning(it: &Partitioning) -> StoredPartitioning {
    StoredPartitioning { generation: it.generation, by: it.by.as_ref().map(store_version) }
}

fn store_version(version: &BindingVersion) -> StoredVersion {
    StoredVersion {
        number: version.number,
        digest: version.digest.to_string(),
        reference: version.reference.to_string(),
        plugin: version.plugin.clone(),
        configuration: hexadecimal::encode(&version.configuration),
        on_fault: version.on_fault.as_str().to_owned(),
    }
}

/// The records of all slots of a store.
pub(crate) fn stored(store: &dyn PluginStore) -> Result<Vec<SlotRecord>, StoreError> {
    store.bindings()?.iter().map(|on_record| SlotRecord::decode(&on_record.record)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u64) -> BindingVersion {
        BindingVersion {
            number,
            digest: Digest::of(b"x"),
            reference: Reference::parse("set-union@1.2.0").unwrap(),
            plugin: "set-union@1.2.0".into(),
            configuration: Bytes::from_static(&[0, 255, b'"']),
            on_fault: OnFault::Fail,
        }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let record = BindingRecord {
            tenant: Some(TenantId::new("a\"b").unwrap()),
            hook: Hook::ConflictResolver,
            current: version(2),
            previous: vec![version(1)],
            followed: Some(Digest::of(b"y")),
        };
        let record = SlotRecord::of(record);
        assert!(record.encode().contains("\"v\":1") && !record.encode().contains("partitions"));
        assert_eq!(SlotRecord::decode(&record.encode()), Ok(record.clone()));
        let partitions =
            vec![Partitioning { generation: 3, by: None }, Partitioning { generation: 4, by: Some(version(1)) }];
        for bound in [record.bound.clone(), None] {
            let record = SlotRecord { bound, partitions: partitions.clone(), ..record.clone() };
            assert_eq!(SlotRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn bytes_of_the_first_layout_are_read() {
        let digest = "ab".repeat(32);
        let plugin = r#""reference":"adaptive-latency","plugin":"adaptive-latency@0.1.0","configuration":"61","on_fault":"native""#;
        let current = format!(r#"{{"number":7,"digest":"{digest}",{plugin}}}"#);
        let text = format!(
            r#"{{"v":1,"tenant":null,"hook":"consistency-policy","current":{current},"previous":[],"followed":null}}"#
        );
        let record = SlotRecord::decode(&text).unwrap();
        let current = record.current().unwrap();
        assert_eq!((current.number, &current.configuration[..], record.partitions.len()), (7, &b"a"[..], 0));
        assert!(SlotRecord::decode(&text.replace("\"v\":1", "\"v\":4")).unwrap_err().to_string().contains("newer"));
        let nothing = r#"{"v":1,"tenant":null,"hook":"routing-hook","current":null,"previous":[],"followed":null}"#;
        assert!(SlotRecord::decode(nothing).is_err() && SlotRecord::decode("{}").is_err());
    }

    #[test]
    fn a_candidate_is_read_as_it_is_written() {
        let bounds = Bounds { p99_us: Some(900), steps: vec![10, 50], ..Bounds::default() };
        let (mode, promote_after_s) = (Mode::Canary, Some(60));
        let trial = Trial { mode, percent: 5, bounds, promote_after_s, began_ms: 7, step_ms: 8 };
        let candidate = Some(CandidateRecord { version: version(3), trial });
        let bound = BindingRecord {
            tenant: None,
            hook: Hook::ConsistencyPolicy,
            current: version(2),
            previous: Vec::new(),
            followed: None,
        };
        let record = SlotRecord { candidate, ..SlotRecord::of(bound) };
        assert!(record.encode().contains("\"v\":3"), "programs that do not know candidates do not read it");
        assert_eq!(SlotRecord::decode(&record.encode()), Ok(record.clone()));
        assert!(SlotRecord::decode(&record.encode().replace("\"percent\":5", "\"percent\":100")).is_err());
        assert_eq!(BindingVersion::decode(&version(4).encode()), Ok(version(4)));
        assert!(BindingVersion::decode("{}").is_err());
        assert_eq!(version(4).name_and_version(), ("set-union", "1.2.0"));
    }

    #[test]
    fn references_are_digests_names_or_names_with_a_version() {
        for text in ["set-union", "set-union@1.0.0", "operator/set-union", "operator/x@2", &"0f".repeat(32)] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
        for wrong in
            ["", "Set", "a@", "@1", "a b", "../x", "a@1@2", "operator/", "shop/x", "operator/operator/x", "a\u{1b}[2J"]
        {
            assert_eq!(Reference::parse(wrong), None, "{wrong}");
        }
    }
}
