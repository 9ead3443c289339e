//! Who may use which class of limits of plugins, and how often components of a wide class are compiled for a tenant.

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::class::Class;
use crate::name::TenantId;

/// Components of a class that has to be granted which are compiled for one tenant within [`TENANT_COMPILATIONS_MS`]: each takes a core for
/// half a minute and up to a gigabyte of memory, and nobody has a new version more often than every quarter of an hour for long.
pub const TENANT_COMPILATIONS: usize = 4;
/// An hour, in milliseconds.
pub const TENANT_COMPILATIONS_MS: u64 = 3_600_000;

/// A class that an operator has granted to a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassGrant {
    /// The tenant.
    pub tenant: TenantId,
    /// The class: one that is not for all.
    pub class: Class,
    /// When it was granted first: Unix time, milliseconds.
    pub granted_at_ms: u64,
}

/// Grants of classes on record, and compilations that count.
pub trait ClassStore: Send + Sync + 'static {
    /// Grants a class to a tenant. The same again is no error. [`StoreError::Missing`] without such a tenant;
    /// [`StoreError::Refused`] for a class that every tenant has.
    fn grant_class(&self, grant: ClassGrant) -> Answer<()>;

    /// Takes a class from a tenant. One that it does not have is no error. Deleting the tenant does the same.
    fn revoke_class(&self, tenant: &TenantId, class: Class) -> Answer<()>;

    /// Every grant, by tenant and class.
    fn class_grants(&self) -> Answer<Vec<ClassGrant>>;

    /// Counts a compilation for a tenant that begins now. Otherwise, after [`TENANT_COMPILATIONS`] within
    /// [`TENANT_COMPILATIONS_MS`], nothing is counted, and the answer is how many milliseconds later the next one may begin.
    fn count_compilation(&self, tenant: &TenantId) -> Answer<Option<u64>>;
}

/// When the next compilation may begin, in milliseconds from now; `None`: now. `began_ms`: when the last ones have begun.
pub fn next_compilation(began_ms: &[u64], now_ms: u64) -> Option<u64> {
    let recent = began_ms.iter().filter(|began| **began + TENANT_COMPILATIONS_MS > now_ms);
    if recent.clone().count() < TENANT_COMPILATIONS {
        return None;
    }
    recent.min().map(|first| first + TENANT_COMPILATIONS_MS - now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_compilations_an_hour_are_counted_from_when_each_began() {
        let hour = TENANT_COMPILATIONS_MS;
        assert_eq!(next_compilation(&[], 5), None);
        assert_eq!(next_compilation(&[1, 2, 3], 5), None);
        assert_eq!(next_compilation(&[4, 1, 3, 2], 5), Some(hour - 4), "an hour after the first");
        assert_eq!(next_compilation(&[4, 1, 3, 2], hour), Some(1));
        assert_eq!(next_compilation(&[4, 1, 3, 2], hour + 1), None);
    }
}
