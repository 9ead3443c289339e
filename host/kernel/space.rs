//! The rows of one generation of a tenant.
//!
//! A tenant whose keys are placed anew by another partition hook gets rows of its own for that, beside those that it has: both are there
//! while its records move, also on the same node, and neither is taken for the other. Generation 0, of before the first such change, is
//! named like the tenant; a later one by the tenant, a colon and its number. No tenant's id contains a colon.

use std::fmt;

use bytes::Bytes;

use crate::limit::TENANT_BYTES;
use crate::name::TenantId;

/// Longest name of a space: a tenant's longest id, a colon, and ten digits.
pub const SPACE_BYTES: usize = TENANT_BYTES + 11;

/// A tenant in one of its generations.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space {
    /// As rows, scans and requests have it.
    name: Bytes,
    /// The length of the tenant's id in it.
    tenant: u16,
}

impl Space {
    /// The rows of a tenant in a generation.
    pub fn new(tenant: &TenantId, generation: u32) -> Self {
        if generation == 0 {
            return tenant.clone().into();
        }
        let name = [tenant.bytes(), format!(":{generation}").as_bytes()].concat();
        Self { name: name.into(), tenant: length(tenant.bytes().len()) }
    }

    /// Reads a name that another part of this system has checked already (a peer, a stored row). What is not the name of a later
    /// generation, exactly as it is written, is that of a tenant.
    pub fn from_trusted(name: Bytes) -> Self {
        let colon = name.iter().rposition(|byte| *byte == b':').filter(|at| number(&name[at + 1..]).is_some());
        let tenant = length(colon.unwrap_or(name.len()));
        Self { name, tenant }
    }

    /// Reads a name of a length that it may have; `None` for any other.
    pub fn parse(name: Bytes) -> Option<Self> {
        let space = Self::from_trusted(name);
        (1..=TENANT_BYTES).contains(&usize::from(space.tenant)).then_some(space)
    }

    /// Its name.
    pub fn bytes(&self) -> &Bytes {
        &self.name
    }

    /// The same as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.name).unwrap_or("(not UTF-8)")
    }

    /// The tenant.
    pub fn tenant(&self) -> TenantId {
        TenantId::from_trusted(self.name.slice(..usize::from(self.tenant)))
    }

    /// Whether it is one of this tenant's.
    pub fn is_of(&self, tenant: &TenantId) -> bool {
        self.name[..usize::from(self.tenant)] == tenant.bytes()[..]
    }

    /// The generation.
    pub fn generation(&self) -> u32 {
        self.name.get(usize::from(self.tenant) + 1..).and_then(number).unwrap_or(0)
    }
}

impl From<TenantId> for Space {
    /// Its rows of generation 0.
    fn from(tenant: TenantId) -> Self {
        let name = tenant.bytes().clone();
        Self { tenant: length(name.len()), name }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn length(bytes: usize) -> u16 {
    // A row's key has two bytes for it.
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// The number of a later generation, as it is written: without leading zeros.
fn number(digits: &[u8]) -> Option<u32> {
    if digits.first() == Some(&b'0') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn generations_are_named_and_the_first_is_named_like_its_tenant() {
        let names = [0, 1, 10, u32::MAX].map(|generation| Space::new(&tenant("t"), generation).as_str().to_owned());
        assert_eq!(names, ["t", "t:1", "t:10", "t:4294967295"]);
        let longest = Space::new(&tenant(&"t".repeat(TENANT_BYTES)), u32::MAX);
        assert_eq!(longest.bytes().len(), SPACE_BYTES);
        assert_eq!(Space::parse(longest.bytes().clone()), Some(longest));
    }

    #[test]
    fn what_is_no_generation_is_a_tenant_of_its_own() {
        for name in ["t:0", "t:01", "t:", "t:x", "t:4294967296", "t:-1", "t:+1", "t: 1"] {
            let space = Space::from_trusted(Bytes::copy_from_slice(name.as_bytes()));
            assert_eq!((space.generation(), space.is_of(&tenant("t"))), (0, false), "{name}");
            assert_eq!(space.tenant().as_str(), name);
        }
        for name in ["", ":1"] {
            assert_eq!(Space::parse(Bytes::copy_from_slice(name.as_bytes())), None);
        }
        assert_eq!(Space::parse(vec![b't'; TENANT_BYTES + 1].into()), None);
    }

    proptest! {
        #[test]
        fn a_space_is_its_tenant_and_its_generation(id in "[a-z0-9.é]{1,9}", generation: u32) {
            let space = Space::new(&tenant(&id), generation);
            prop_assert_eq!((space.tenant(), space.generation()), (tenant(&id), generation));
            let other = tenant(&format!("{id}x"));
            prop_assert!(space.is_of(&tenant(&id)) && !space.is_of(&other));
            prop_assert_eq!(Space::parse(space.bytes().clone()), Some(space.clone()));
            prop_assert_eq!(generation == 0, space == Space::from(tenant(&id)));
        }
    }
}
