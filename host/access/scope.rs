//! What each call needs: the one table of all paths and the scopes that they require.

use std::fmt;

use witan_kernel::name::{Invalid, shown};

/// A permission of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Read and list keys, and read their tenant's settings.
    Read,
    /// Write and delete keys.
    Write,
    /// Create, change and delete the tenant, repair it, upload and bind plugins for it, and create its tokens.
    Admin,
    /// Change nodes and plugins, create any token, list tenants.
    Operator,
}

impl Scope {
    /// Every scope, in the order of their bits in [`Scopes`].
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Admin, Self::Operator];

    /// Its name in the API, in tokens and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u32);

impl Scopes {
    /// The empty set: a credential that may do nothing.
    pub const NONE: Self = Self(0);
    /// The set of every scope: what a credential without bounds has.
    pub const ALL: Self = Self(Scope::Read.bit() | Scope::Write.bit() | Scope::Admin.bit() | Scope::Operator.bit());

    /// The set of one scope.
    pub const fn only(scope: Scope) -> Self {
        Self(scope.bit())
    }

    /// The union of both sets.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The scopes of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True when `scope` is one of them.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// True when the sets have a scope in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True for the empty set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits that a token stores.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of the bits that a token stores. Unknown bits, of a later version, are ignored.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The scopes of the set, in their order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }

    /// Reads scopes by their names.
    ///
    /// # Errors
    /// For an unknown name.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        names.into_iter().try_fold(Self::NONE, |all, name| Ok(all.or(Self::only(scope(name)?))))
    }

    /// The scopes among words, ignoring words that are not scopes.
    pub fn among<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        words.into_iter().filter_map(|word| scope(word).ok()).fold(Self::NONE, |all, one| all.or(Self::only(one)))
    }
}

fn scope(name: &str) -> Result<Scope, Invalid> {
    Scope::ALL.into_iter().find(|scope| scope.as_str() == name).ok_or_else(|| {
        Invalid::new("scopes", format!("{} is not a scope", shown(name)), "use read, write, admin or operator")
    })
}

/// Such as `read or write`.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(" or "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Scope::as_str)).finish()
    }
}

/// What a call requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: probes must work without a credential.
    Nothing,
    /// Any credential.
    Credential,
    /// Any credential that is not bound to a tenant, since the response is about all tenants.
    WholeCluster,
    /// A credential with one of these scopes.
    OneOf(Scopes),
}

/// What a call does to the cluster when it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// It changes keys.
    Keys,
    /// It changes tenants, nodes, plugins or tokens; these changes are recorded in the audit log.
    Catalog,
}

/// The requirements and the effect of one call.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// The path: "/package.Service/Method".
    pub path: &'static str,
    /// What a call requires.
    pub need: Need,
    /// What it changes.
    pub effect: Effect,
    /// Whether its response is a stream, so that the call outlasts its admission.
    pub streams: bool,
    /// Bytes of the largest message that it takes.
    pub most_bytes: usize,
}

/// Bytes of the largest message of most calls: several times a page of names, or a plugin's configuration.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Of a chunk of an upload, which may have 1 MiB, with its envelope.
const CHUNK_BYTES: usize = 2 << 20;
/// Of a value of 10 MiB and its envelope; in a session, of a batch of requests.
pub const VALUE_MESSAGE_BYTES: usize = 16 << 20;

impl Rule {
    const fn of_at_most(self, most_bytes: usize) -> Self {
        Self { most_bytes, ..self }
    }

    /// The scope whose rate a call counts against. Operations of a session are counted one by one instead.
    pub fn rate(&self) -> Option<Scope> {
        match self.need {
            Need::OneOf(scopes) if scopes != READ_OR_WRITE => scopes.iter().next(),
            _ => None,
        }
    }
}

const READ: Need = Need::OneOf(Scopes::only(Scope::Read));
const WRITE: Need = Need::OneOf(Scopes::only(Scope::Write));
const ADMIN: Need = Need::OneOf(Scopes::only(Scope::Admin));
const OPERATOR: Need = Need::OneOf(Scopes::only(Scope::Operator));
const READ_OR_WRITE: Scopes = Scopes::only(Scope::Read).or(Scopes::only(Scope::Write));
/// Administrators of tenants may also read them.
const READ_OR_ADMIN: Need = Need::OneOf(Scopes::only(Scope::Read).or(Scopes::only(Scope::Admin)));
/// An administrator for its tenant, an operator for all.
const ADMIN_OR_OPERATOR: Need = Need::OneOf(Scopes::only(Scope::Admin).or(Scopes::only(Scope::Operator)));

const fn rule(path: &'static str, need: Need, effect: Effect) -> Rule {
    Rule { path, need, effect, streams: false, most_bytes: MESSAGE_BYTES }
}

const fn streaming(path: &'static str, need: Need, effect: Effect) -> Rule {
    Rule { path, need, effect, streams: true, most_bytes: MESSAGE_BYTES }
}

/// Every call of every server of a coordinator, the most frequent first.
pub static RULES: [Rule; 51] = [
    rule("/witan.v1.CoordinatorService/ReadKeyValue", READ, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/WriteKeyValue", WRITE, Effect::Keys).of_at_most(VALUE_MESSAGE_BYTES),
    rule("/witan.v1.CoordinatorService/DeleteKeyValue", WRITE, Effect::Keys),
    streaming("/witan.v1.CoordinatorService/Session", Need::OneOf(READ_OR_WRITE), Effect::Keys)
        .of_at_most(VALUE_MESSAGE_BYTES),
    rule("/witan.v1.CoordinatorService/ListKeys", READ, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/LocateKey", READ, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/GetTenant", READ_OR_ADMIN, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/CreateTenant", ADMIN, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/UpdateTenant", ADMIN, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/UpdateReplicationFactor", ADMIN, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/DeleteTenant", ADMIN, Effect::Catalog),
    streaming("/witan.v1.CoordinatorService/Repair", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/ListTenants", OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/AddStorageNode", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/RemoveStorageNode", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/UpdateStorageNode", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/ReplaceStorageNode", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/DrainStorageNode", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/ListStorageNodes", OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/DeclareRestored", OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/GetMigrationStatus", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/ListMigrations", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/CancelMigration", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.CoordinatorService/PlanMigration", OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/ListLeftovers", OPERATOR, Effect::Nothing),
    rule("/witan.v1.CoordinatorService/DropLeftovers", OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/UploadPlugin", ADMIN_OR_OPERATOR, Effect::Catalog).of_at_most(CHUNK_BYTES),
    rule("/witan.v1.PluginService/ListPlugins", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/GetPlugin", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/RemovePlugin", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/BindPlugin", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/RollbackBinding", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/ListBindings", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/PromoteBinding", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/DiscardCandidate", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/GetBindingHistory", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/GetBindingReport", ADMIN_OR_OPERATOR, Effect::Nothing),
    // It changes nothing, and is recorded all the same: it shows values to whoever may read them, and costs what many reads cost.
    rule("/witan.v1.PluginService/TryPlugin", ADMIN_OR_OPERATOR, Effect::Catalog),
    streaming("/witan.v1.PluginService/TailPluginLogs", ADMIN_OR_OPERATOR, Effect::Nothing),
    streaming("/witan.v1.PluginService/WatchPluginEvents", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/AddSigningKey", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/ListSigningKeys", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.PluginService/RemoveSigningKey", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.PluginService/GrantPluginClass", OPERATOR, Effect::Catalog),
    rule("/witan.v1.AccessService/CreateToken", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/witan.v1.AccessService/ListTokens", ADMIN_OR_OPERATOR, Effect::Nothing),
    rule("/witan.v1.AccessService/RevokeToken", ADMIN_OR_OPERATOR, Effect::Catalog),
    rule("/grpc.health.v1.Health/Check", Need::Nothing, Effect::Nothing),
    streaming("/grpc.health.v1.Health/Watch", Need::Nothing, Effect::Nothing),
    streaming("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Credential, Effect::Nothing),
    streaming("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need::Credential, Effect::Nothing),
];

/// For calls that are missing in the table: only operators may make them.
static UNKNOWN: Rule = rule("(unknown)", OPERATOR, Effect::Nothing);

/// The rule of the gRPC call at `path`.
pub fn of_call(path: &str) -> &'static Rule {
    RULES.iter().find(|rule| rule.path == path).unwrap_or(&UNKNOWN)
}

/// HTTP probes that need no credential. Without one, /readyz returns the status only.
static PROBES: [Rule; 2] =
    [rule("/livez", Need::Nothing, Effect::Nothing), rule("/readyz", Need::Nothing, Effect::Nothing)];

/// All other HTTP paths: their responses are about all tenants.
static HTTP: Rule = rule("(http)", Need::WholeCluster, Effect::Nothing);

/// The rule of an HTTP path.
pub fn of_http(path: &str) -> &'static Rule {
    PROBES.iter().find(|rule| rule.path == path).unwrap_or(&HTTP)
}

/// The rule for the reasons that /readyz shows.
pub fn of_details() -> &'static Rule {
    &HTTP
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Paths of every call in a coordinator's descriptors, and in the services of its dependencies.
    fn described() -> BTreeSet<String> {
        let sets = [witan_wire::v1::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
        let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
        let paths = files.flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let name = format!("/{package}.{}/", service.name());
                service.method.into_iter().map(move |method| format!("{name}{}", method.name())).collect::<Vec<_>>()
            })
        });
        // Storage nodes serve this one, and check other credentials.
        paths.filter(|path| !path.contains("StorageNodeService")).collect()
    }

    #[test]
    fn every_call_has_a_rule_and_every_rule_a_call() {
        let described = described();
        for path in &described {
            assert_ne!(of_call(path), &UNKNOWN, "{path} has no rule: say who may call it");
        }
        let reflection = |path: &str| path.starts_with("/grpc.reflection.");
        for rule in RULES.iter().filter(|rule| !reflection(rule.path)) {
            assert!(described.contains(rule.path), "there is no call {}", rule.path);
        }
        let distinct: BTreeSet<&str> = RULES.iter().map(|rule| rule.path).collect();
        assert_eq!(distinct.len(), RULES.len());
    }

    #[test]
    fn what_is_not_known_is_for_operators() {
        for path in ["", "/", "/witan.v1.CoordinatorService/Nuke", "/witan.v1.CoordinatorService/ReadKeyValue/", "x"] {
            assert_eq!(of_call(path).need, OPERATOR, "{path}");
        }
        for path in ["/metrics", "/", "/debug", "/livez/", "/READYZ"] {
            assert_eq!(of_http(path).need, Need::WholeCluster, "{path}");
        }
    }

    #[test]
    fn only_probes_are_open() {
        for rule in &RULES {
            assert_eq!(rule.need == Need::Nothing, rule.path.starts_with("/grpc.health."), "{}", rule.path);
        }
    }

    #[test]
    fn scopes_are_spelled_and_stored() {
        let some = Scopes::parse(["write", "read"]).unwrap();
        assert_eq!((some.to_string().as_str(), some.bits()), ("read or write", 3));
        assert_eq!(Scopes::from_bits(u32::MAX), Scopes::ALL);
        assert!(Scopes::parse(["root"]).unwrap_err().to_string().contains("operator"));
        assert_eq!(Scopes::among("openid read profile".split(' ')), Scopes::only(Scope::Read));
        assert_eq!(Scopes::NONE.to_string(), "none");
    }

    #[test]
    fn rates_are_those_of_the_least_scope() {
        let rate = |method: &str| of_call(&format!("/witan.v1.{method}")).rate();
        assert_eq!(rate("CoordinatorService/ReadKeyValue"), Some(Scope::Read));
        assert_eq!(rate("CoordinatorService/Session"), None);
        assert_eq!(rate("PluginService/BindPlugin"), Some(Scope::Admin));
        assert_eq!(rate("PluginService/UploadPlugin"), Some(Scope::Admin));
        assert_eq!(rate("CoordinatorService/AddStorageNode"), Some(Scope::Operator));
    }
}
