//! Classes of limits: which one a component needs, and what it takes of each limit.

use witan_kernel::limit::COMPONENT_BYTES;
use witan_plugin::{Inspection, Limits, limit};

use crate::output::grouped;

/// A class of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: &'static str,
    /// Whether coordinators of this version have it.
    pub is_offered: bool,
    /// Largest component, in bytes.
    pub bytes: usize,
    /// Largest function body, in bytes.
    pub function_bytes: usize,
    /// Most core instances, memories and tables, of each.
    pub items: usize,
}

/// Every class, the strictest first. The second one is what components with an interpreter of Python or JavaScript were measured to need:
/// those of componentize-py 0.25 have 18.4 MB, a function of 427 KB, and 38 core instances.
pub const CLASSES: [Class; 2] = [
    Class {
        name: "standard",
        is_offered: true,
        bytes: limit::ARTIFACT_BYTES,
        function_bytes: limit::FUNCTION_BYTES,
        items: limit::STORE_ITEMS,
    },
    Class { name: "interpreted", is_offered: false, bytes: COMPONENT_BYTES, function_bytes: 512 << 10, items: 48 },
];

/// What a component takes of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// What is limited, with its unit.
    pub what: &'static str,
    /// How much the component has.
    pub has: u64,
    /// How much is allowed.
    pub most: u64,
}

impl Use {
    /// Whether it is within the limit.
    pub fn fits(&self) -> bool {
        self.has <= self.most
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let over = if self.fits() { "" } else { "  <- too much" };
        format!("{:<38} {:>12} of {:>12}{over}", self.what, grouped(self.has), grouped(self.most))
    }
}

impl Class {
    /// What a component takes of each of its limits.
    pub fn uses(&self, it: &Inspection) -> Vec<Use> {
        let limits = Limits::default();
        let memory = it.hook.map_or(limits.resolver.memory, |hook| limits.budget(hook).memory);
        let of = |what, has: usize, most: usize| Use { what, has: has as u64, most: most as u64 };
        vec![
            of("component, bytes", it.bytes, self.bytes),
            of("functions", it.functions, limit::FUNCTIONS),
            of("largest function, bytes", it.largest_function, self.function_bytes),
            of("core instances", it.instances, self.items),
            of("memories", it.memories, self.items),
            Use { what: "memories at the start, bytes", has: it.memory_bytes, most: memory as u64 },
            of("tables", it.tables, self.items),
            Use { what: "elements of tables at the start", has: it.table_elements, most: limit::TABLE_ELEMENTS as u64 },
        ]
    }

    /// The strictest class whose limits a component keeps, if there is one.
    pub fn needed(it: &Inspection) -> Option<Self> {
        CLASSES.into_iter().find(|class| class.uses(it).iter().all(Use::fits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Inspection)) -> Inspection {
        let mut it = Inspection {
            bytes: 9_000,
            imports: Vec::new(),
            exports: Vec::new(),
            hook: None,
            functions: 40,
            largest_function: 2_000,
            instances: 3,
            memories: 1,
            memory_bytes: 131_072,
            tables: 1,
            table_elements: 4,
        };
        change(&mut it);
        it
    }

    fn needed(change: impl FnOnce(&mut Inspection)) -> Option<&'static str> {
        Class::needed(&with(change)).map(|class| class.name)
    }

    #[test]
    fn the_strictest_class_that_suffices_is_named() {
        assert_eq!(needed(|_| ()), Some("standard"));
        assert_eq!(needed(|it| it.bytes = (1 << 20) + 1), Some("interpreted"));
        assert_eq!(needed(|it| it.instances = 17), Some("interpreted"));
        assert_eq!(needed(|it| it.largest_function = 427_000), Some("interpreted"));
        assert_eq!(needed(|it| it.bytes = (32 << 20) + 1), None);
        assert_eq!(needed(|it| it.functions = 20_001), None);
    }

    #[test]
    fn what_is_too_much_is_marked() {
        let uses = CLASSES[0].uses(&with(|it| it.instances = 17));
        let over: Vec<String> = uses.iter().filter(|it| !it.fits()).map(Use::line).collect();
        assert_eq!(over.len(), 1);
        assert!(over[0].starts_with("core instances") && over[0].contains("17 of") && over[0].ends_with("<- too much"));
    }
}
