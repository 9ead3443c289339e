//! Weights of tenants: what each may have of what all share while there is not enough for everybody.

use std::collections::BTreeMap;

use crate::name::{Invalid, TenantId, shown};

/// The weight of a tenant that has none of its own.
pub const DEFAULT_WEIGHT: u32 = 1;
/// The largest weight. With more, a tenant of weight 1 would wait for seconds on a connection of some megabytes a second.
pub const MOST_WEIGHT: u32 = 100;
/// Most tenants with a weight of their own: they are looked up for each operation, and listed in a configuration file by people.
pub const WEIGHTS: usize = 1000;

/// The weights that are not [`DEFAULT_WEIGHT`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(BTreeMap<TenantId, u32>);

impl Weights {
    /// Reads entries of the form `TENANT=WEIGHT`. `field` names them in errors.
    ///
    /// # Errors
    /// An entry that is not of that form, a weight out of range, a tenant that is there twice, too many of them.
    pub fn parse(field: &'static str, entries: &[String]) -> Result<Self, Invalid> {
        if entries.len() > WEIGHTS {
            let remedy = format!("give at most {WEIGHTS} tenants a weight of their own");
            return Err(Invalid::new(field, format!("has {} entries", entries.len()), remedy));
        }
        let mut weights = BTreeMap::new();
        for entry in entries {
            let wrong = |what: &str| {
                let remedy = format!("use TENANT=WEIGHT with a weight from 1 to {MOST_WEIGHT}, such as \"shop=4\"");
                Invalid::new(field, format!("{} {what}", shown(entry)), remedy)
            };
            let (tenant, weight) = entry.rsplit_once('=').ok_or_else(|| wrong("has no weight"))?;
            let tenant = TenantId::new(tenant).map_err(|_| wrong("does not begin with the id of a tenant"))?;
            let weight = weight.parse().ok().filter(|weight| (1..=MOST_WEIGHT).contains(weight));
            let weight = weight.ok_or_else(|| wrong("does not end with a weight"))?;
            if weights.insert(tenant, weight).is_some() {
                return Err(Invalid::new(field, format!("{} is there twice", shown(entry)), "keep one of them"));
            }
        }
        Ok(Self(weights))
    }

    /// The weight of a tenant, 1..=[`MOST_WEIGHT`].
    pub fn of(&self, tenant: &TenantId) -> u32 {
        // Nearly always: nobody has one.
        if self.0.is_empty() { DEFAULT_WEIGHT } else { self.0.get(tenant).copied().unwrap_or(DEFAULT_WEIGHT) }
    }

    /// Entries as [`Self::parse`] reads them, by tenant.
    pub fn entries(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(tenant, weight)| format!("{tenant}={weight}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[&str]) -> Result<Weights, String> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        Weights::parse("weights", &entries).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn entries_are_read_as_they_are_written() {
        let weights = parse(&["shop=4", "a=b=100", "plain=1"]).unwrap();
        let of = |tenant: &str| weights.of(&TenantId::new(tenant).unwrap());
        assert_eq!((of("shop"), of("a=b"), of("plain"), of("other")), (4, 100, 1, 1));
        assert_eq!(weights.entries().collect::<Vec<_>>(), ["a=b=100", "plain=1", "shop=4"]);
        assert_eq!(Weights::default().of(&TenantId::new("shop").unwrap()), DEFAULT_WEIGHT);
    }

    #[test]
    fn wrong_entries_name_field_value_and_remedy() {
        for wrong in ["shop", "shop=", "shop=0", "shop=101", "shop=-1", "shop=1.5", "=4", "a b\n=4"] {
            let error = parse(&["fine=2", wrong]).unwrap_err();
            assert!(error.contains("weights") && error.contains("shop=4"), "{wrong:?}: {error}");
        }
        assert!(parse(&["shop=4", "shop=5"]).unwrap_err().contains("twice"));
        let many: Vec<String> = (0..=WEIGHTS).map(|n| format!("t{n}=2")).collect();
        assert!(Weights::parse("weights", &many).unwrap_err().to_string().contains("1000"));
        assert!(Weights::parse("weights", &many[1..]).is_ok());
    }
}
