//! Whose a plugin is, and which plugins an owner may add: one rule for every store and for the plugin host.
//!
//! An owner is a tenant, or the operator, whose plugins are for all tenants. Several tenants may own the same component, of which nobody
//! learns: its bytes are stored once, and are removed with the last of them. A name never means a plugin of the operator's and one of a
//! tenant at the same time, so that a tenant may leave out whose it means.

use super::{ARTIFACTS, Artifact};
use crate::name::TenantId;

/// Most plugins of one tenant: ten versions of each of its three hooks, and a few more.
pub const TENANT_ARTIFACTS: usize = 32;
/// Most bytes of all components of one tenant: twice the largest component, or 2 MiB for each of [`TENANT_ARTIFACTS`].
pub const TENANT_ARTIFACT_BYTES: u64 = 64 << 20;
/// Most plugins of all tenants together: every coordinator keeps them on its disk, 1 GiB of components with default limits. The operator's
/// are not counted, so that tenants leave room for them.
pub const TENANTS_ARTIFACTS: usize = 1024;

/// Why an owner may not have a plugin. Nothing is changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOwned {
    /// The operator has a plugin of this name.
    #[error(
        "the operator has a plugin named {name} already, which every tenant may bind as operator/{name}; give yours another name"
    )]
    NameOfOperator {
        /// The name.
        name: String,
    },
    /// The operator's plugins are for all tenants, and one of them has a plugin of this name.
    #[error(
        "tenant {tenant} has a plugin named {name} already, and a name means one plugin for a tenant; give this one another name, or \
         remove the tenant's: witan plugin remove {name} --tenant {tenant}"
    )]
    NameOfTenant {
        /// The name.
        name: String,
        /// One of the tenants.
        tenant: TenantId,
    },
    /// The tenant has [`TENANT_ARTIFACTS`].
    #[error("tenant {0} has {TENANT_ARTIFACTS} plugins, the most that a tenant may have; remove one first")]
    TooMany(TenantId),
    /// The tenant's components would have more than [`TENANT_ARTIFACT_BYTES`].
    #[error(
        "the plugins of tenant {tenant} would have {bytes} bytes together; at most {TENANT_ARTIFACT_BYTES} are allowed: remove one first"
    )]
    TooLarge {
        /// The tenant.
        tenant: TenantId,
        /// The bytes that its components would have.
        bytes: u64,
    },
    /// There are [`TENANTS_ARTIFACTS`].
    #[error(
        "the tenants of this cluster have {TENANTS_ARTIFACTS} plugins together, the most there can be; remove one first"
    )]
    TenantsFull,
    /// There are [`ARTIFACTS`].
    #[error("the operator has {ARTIFACTS} plugins, the most there can be; remove one first")]
    OperatorFull,
}

impl NotOwned {
    /// Whether it is about a name, rather than about how many plugins there are.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::NameOfOperator { .. } | Self::NameOfTenant { .. })
    }
}

impl Artifact {
    /// Whether a tenant may see and bind it; `None`: whether it may be bound for all tenants.
    pub fn is_for(&self, tenant: Option<&TenantId>) -> bool {
        self.owner.is_none() || self.owner.as_ref() == tenant
    }

    /// The owner's id as text, `""` for the operator.
    pub fn owner_text(&self) -> &str {
        self.owner.as_ref().map_or("", TenantId::as_str)
    }
}

/// Checks that an owner may have another plugin, which it has not yet, beside `all` that there are.
pub fn may_own<'a>(wanted: &Artifact, all: impl Iterator<Item = &'a Artifact> + Clone) -> Result<(), NotOwned> {
    let same_name = |other: &&Artifact| other.name == wanted.name || other.digest == wanted.digest;
    let of_tenants = all.clone().filter(|other| other.owner.is_some());
    let Some(tenant) = &wanted.owner else {
        if let Some(other) = of_tenants.clone().find(same_name)
            && let Some(tenant) = other.owner.clone()
        {
            return Err(NotOwned::NameOfTenant { name: other.name.clone(), tenant });
        }
        let operators = all.filter(|other| other.owner.is_none()).count();
        return if operators >= ARTIFACTS { Err(NotOwned::OperatorFull) } else { Ok(()) };
    };
    if let Some(other) = all.filter(|other| other.owner.is_none()).find(same_name) {
        return Err(NotOwned::NameOfOperator { name: other.name.clone() });
    }
    let own = of_tenants.clone().filter(|other| other.owner.as_ref() == Some(tenant));
    if own.clone().count() >= TENANT_ARTIFACTS {
        return Err(NotOwned::TooMany(tenant.clone()));
    }
    let bytes = own.fold(wanted.size, |bytes, other| bytes.saturating_add(other.size));
    if bytes > TENANT_ARTIFACT_BYTES {
        return Err(NotOwned::TooLarge { tenant: tenant.clone(), bytes });
    }
    if of_tenants.count() >= TENANTS_ARTIFACTS { Err(NotOwned::TenantsFull) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::{Digest, Source};
    use super::*;
    use crate::hook::Hook;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    /// A plugin of a tenant, or of the operator for `""`.
    fn plugin(owner: &str, name: &str, of: u16) -> Artifact {
        Artifact {
            digest: Digest::of(&of.to_be_bytes()),
            owner: (!owner.is_empty()).then(|| tenant(owner)),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            hook: Hook::ConflictResolver,
            deterministic: true,
            size: 1 << 20,
            staged_at_ms: 0,
            source: Source::Upload,
            signed_by: None,
            class: crate::class::Class::Standard,
            class_reason: String::new(),
        }
    }

    fn may(wanted: &Artifact, all: &[Artifact]) -> Result<(), NotOwned> {
        may_own(wanted, all.iter())
    }

    #[test]
    fn a_name_means_one_plugin_for_a_tenant() {
        let all = [plugin("", "union", 1), plugin("a", "cart", 2)];
        assert_eq!([all[0].owner_text(), all[1].owner_text()], ["", "a"]);
        assert_eq!(may(&plugin("", "union", 3), &all), Ok(()), "another version");
        assert_eq!(may(&plugin("b", "cart", 3), &all), Ok(()), "tenants do not notice each other");
        assert_eq!(may(&plugin("b", "cart", 2), &all), Ok(()), "even if it is the same component");
        assert_eq!(may(&plugin("a", "union", 3), &all), Err(NotOwned::NameOfOperator { name: "union".into() }));
        assert_eq!(may(&plugin("a", "other", 1), &all), Err(NotOwned::NameOfOperator { name: "union".into() }));
        let taken = may(&plugin("", "cart", 3), &all).unwrap_err();
        assert_eq!(taken, NotOwned::NameOfTenant { name: "cart".into(), tenant: tenant("a") });
        assert!(taken.is_name() && taken.to_string().ends_with("witan plugin remove cart --tenant a"), "{taken}");
        assert!(may(&plugin("", "other", 2), &all).is_err());
    }

    #[test]
    fn each_tenant_has_a_quota_and_all_together_leave_room_for_the_operator() {
        let of = |owner: &str, count: u16| (0..count).map(|n| plugin(owner, "cart", n)).collect::<Vec<_>>();
        let most = TENANT_ARTIFACTS as u16;
        let full = of("a", most);
        let refused = may(&plugin("a", "cart", 99), &full).unwrap_err();
        assert_eq!((refused.is_name(), &refused), (false, &NotOwned::TooMany(tenant("a"))));
        assert_eq!(may(&plugin("a", "cart", 99), &full[1..]), Ok(()));
        assert_eq!(may(&plugin("b", "cart", 99), &full), Ok(()));
        let large = |mebibytes: u64| Artifact { size: mebibytes << 20, ..plugin("a", "cart", 99) };
        assert_eq!(may(&large(60), &full[..4]), Ok(()));
        let refused = NotOwned::TooLarge { tenant: tenant("a"), bytes: 65 << 20 };
        assert_eq!(may(&large(61), &full[..4]), Err(refused));

        let tenants = (TENANTS_ARTIFACTS / TENANT_ARTIFACTS) as u16;
        let crowd: Vec<_> = (0..tenants).flat_map(|n| of(&format!("t{n}"), most)).collect();
        assert_eq!(may(&plugin("b", "cart", 0), &crowd), Err(NotOwned::TenantsFull));
        assert_eq!(may(&plugin("", "union", 9_999), &crowd), Ok(()));
        let operators = of("", ARTIFACTS as u16);
        assert_eq!(may(&plugin("", "cart", 9_999), &operators), Err(NotOwned::OperatorFull));
        assert_eq!(may(&plugin("a", "own", 9_999), &operators), Ok(()));
    }

    #[test]
    fn the_operators_are_for_all_and_a_tenants_for_it_alone() {
        let seen_by = |owner: &str| {
            [None, Some(tenant("a")), Some(tenant("b"))].map(|by| plugin(owner, "x", 1).is_for(by.as_ref()))
        };
        assert_eq!((seen_by(""), seen_by("a")), ([true; 3], [false, true, false]));
    }
}
