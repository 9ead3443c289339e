//! Classes of limits of plugins. What the limits are is the plugin host's matter; who may use which class is on record.

use std::fmt;

/// A class of limits, the strictest first. A component needs the strictest one that it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Class {
    /// For components of compiled languages without a runtime. Every tenant has it.
    #[default]
    Standard,
    /// For components with an interpreter or a runtime in them. An operator grants it to a tenant.
    Interpreted,
}

impl Class {
    /// Every class, the strictest first.
    pub const ALL: [Self; 2] = [Self::Standard, Self::Interpreted];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Interpreted => "interpreted",
        }
    }

    /// The class of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }

    /// Whether a tenant has it without a grant.
    pub fn is_for_all(self) -> bool {
        self == Self::Standard
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_as_it_is_written() {
        for class in Class::ALL {
            assert_eq!(Class::parse(class.as_str()), Some(class));
            assert_eq!(class.to_string(), class.as_str());
        }
        assert_eq!(Class::ALL.map(Class::is_for_all), [true, false]);
        for wrong in ["", "Standard", "interpreted ", "native"] {
            assert_eq!(Class::parse(wrong), None, "{wrong}");
        }
        assert!(Class::Standard < Class::Interpreted);
    }
}
