//! Classes of limits, in words: which one a component needs, and what it takes of each limit.

use witan_plugin::class::Use;
use witan_plugin::{Class, Inspection, Limits};

use crate::output::grouped;

/// What is said about a component's class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// The class that it needs; `None`: it is beyond the limits of every class.
    pub class: Option<Class>,
    /// Why it needs no stricter one, or fits none. Empty for the strictest.
    pub why: String,
    /// What it takes of each limit of its class, or else of the widest.
    pub uses: Vec<Use>,
}

/// Classifies a component as a coordinator with default limits does.
pub fn classify(it: &Inspection) -> Classified {
    let limits = Limits::default();
    match limits.needs(it) {
        Ok(needs) => {
            let why = needs.beyond.first().map(ToString::to_string).unwrap_or_default();
            Classified { class: Some(needs.class), why, uses: limits.uses(needs.class, it) }
        }
        Err(beyond) => {
            let widest = limits.widest(it);
            Classified { class: None, why: beyond.to_string(), uses: limits.uses(widest, it) }
        }
    }
}

impl Classified {
    /// A sentence about the class.
    pub fn words(&self) -> String {
        match self.class {
            Some(class) if class.is_for_all() => format!("{class}, which every tenant has"),
            Some(class) => format!("{class}, which an operator grants to a tenant; in class standard, it {}", self.why),
            None => format!("none: it {}", self.why),
        }
    }
}

/// A line about one limit.
pub fn line(it: &Use) -> String {
    let over = if it.fits() { "" } else { "  <- too much" };
    format!("{:<38} {:>12} of {:>12}{over}", it.what.label(), grouped(it.has), grouped(it.most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(instances: usize, bytes: usize) -> Classified {
        classify(&Inspection {
            bytes,
            imports: Vec::new(),
            exports: Vec::new(),
            hook: None,
            functions: 40,
            largest_function: 2_000,
            instances,
            memories: 1,
            memory_bytes: 131_072,
            tables: 1,
            table_elements: 4,
        })
    }

    #[test]
    fn the_class_is_named_with_the_reason() {
        assert_eq!(of(3, 9_000).words(), "standard, which every tenant has");
        let wider = of(17, 9_000);
        assert!(wider.words().starts_with("interpreted, which an operator grants"), "{}", wider.words());
        assert!(wider.words().ends_with("has 17 core instances; at most 16 are allowed"), "{}", wider.words());
        assert!(wider.uses.iter().all(Use::fits));
        let none = of(49, 9_000);
        assert_eq!((none.class, none.words()), (None, "none: it has 49 core instances; at most 48 are allowed".into()));
        let over: Vec<String> = none.uses.iter().filter(|it| !it.fits()).map(line).collect();
        assert_eq!(over.len(), 1);
        assert!(over[0].starts_with("core instances") && over[0].contains("49 of") && over[0].ends_with("<- too much"));
    }
}
