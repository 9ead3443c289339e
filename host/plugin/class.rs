//! Classes of limits: what a component takes of each limit of a class, and which class it needs.

use std::fmt;

use witan_kernel::class::Class;
use witan_kernel::hook::Hook;

use crate::limit::{Budget, ClassLimits, Limits};
use crate::validate::Inspection;

/// What is limited of a component before it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Size of the component, in bytes.
    Component,
    /// Core functions.
    Functions,
    /// Size of the largest function body, in bytes.
    Function,
    /// Core instances.
    Instances,
    /// Memories.
    Memories,
    /// Size of all memories at the start, in bytes.
    MemoryBytes,
    /// Tables.
    Tables,
    /// Elements of all tables at the start.
    Elements,
}

impl Measure {
    /// What is limited, with its unit, for a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Component => "component, bytes",
            Self::Functions => "functions",
            Self::Function => "largest function, bytes",
            Self::Instances => "core instances",
            Self::Memories => "memories",
            Self::MemoryBytes => "memories at the start, bytes",
            Self::Tables => "tables",
            Self::Elements => "elements of tables at the start",
        }
    }
}

/// What a component takes of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// What is limited.
    pub what: Measure,
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
}

/// A sentence for the component's author, which continues its name.
impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, has, most } = self;
        match what {
            Measure::Component => write!(f, "has {has} bytes"),
            Measure::Functions => write!(f, "has {has} functions"),
            Measure::Function => write!(f, "has a function of {has} bytes"),
            Measure::Instances => write!(f, "has {has} core instances"),
            Measure::Memories => write!(f, "has {has} memories"),
            Measure::MemoryBytes => write!(f, "starts with {has} bytes of memory"),
            Measure::Tables => write!(f, "has {has} tables"),
            Measure::Elements => write!(f, "starts with {has} elements in tables"),
        }?;
        write!(f, "; at most {most} are allowed")
    }
}

/// The class that a component needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The strictest class that it fits.
    pub class: Class,
    /// What of it is beyond the next stricter class: the reason why it needs this one. Empty for the strictest.
    pub beyond: Vec<Use>,
}

/// "class interpreted: it has 4400000 bytes; at most 1048576 are allowed in class standard".
impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "class {}", self.class)?;
        let stricter = Class::ALL.into_iter().rfind(|class| *class < self.class);
        let (Some(first), Some(stricter)) = (self.beyond.first(), stricter) else { return Ok(()) };
        write!(f, ": it {first} in class {stricter}")
    }
}

impl Limits {
    /// What a component takes of each limit of a class. One whose hook is not known is measured as a conflict resolver, which may have the
    /// most.
    pub fn uses(&self, class: Class, it: &Inspection) -> Vec<Use> {
        let of = self.of(class);
        uses(of, of.budget(hook_of(it)), it)
    }

    /// The class that a component needs, or else the first limit that it exceeds, of the widest class that is for its hook.
    pub fn needs(&self, it: &Inspection) -> Result<Needs, Use> {
        let mut beyond: Vec<Use> = Vec::new();
        let fits = self.classes(it).find_map(|class| {
            let too_much: Vec<Use> = self.uses(class, it).into_iter().filter(|each| !each.fits()).collect();
            if too_much.is_empty() {
                return Some(Needs { class, beyond: std::mem::take(&mut beyond) });
            }
            beyond = too_much;
            None
        });
        let none = Use { what: Measure::Component, has: it.bytes as u64, most: 0 };
        fits.ok_or_else(|| beyond.first().copied().unwrap_or(none))
    }

    /// The widest class that is for a component's hook.
    pub fn widest(&self, it: &Inspection) -> Class {
        self.classes(it).last().unwrap_or_default()
    }

    /// The classes that are for a component's hook, the strictest first.
    fn classes(&self, it: &Inspection) -> impl Iterator<Item = Class> {
        let hook = hook_of(it);
        Class::ALL.into_iter().filter(move |class| self.of(*class).budget(hook).component > 0)
    }
}

fn hook_of(it: &Inspection) -> Hook {
    it.hook.unwrap_or(Hook::ConflictResolver)
}

fn uses(class: &ClassLimits, budget: &Budget, it: &Inspection) -> Vec<Use> {
    let of = |what, has: usize, most: usize| Use { what, has: has as u64, most: most as u64 };
    vec![
        of(Measure::Component, it.bytes, budget.component),
        of(Measure::Functions, it.functions, class.functions),
        of(Measure::Function, it.largest_function, class.function_bytes),
        of(Measure::Instances, it.instances, budget.items),
        of(Measure::Memories, it.memories, budget.items),
        Use { what: Measure::MemoryBytes, has: it.memory_bytes, most: budget.memory as u64 },
        of(Measure::Tables, it.tables, budget.items),
        Use { what: Measure::Elements, has: it.table_elements, most: budget.elements as u64 },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver, with this change.
    fn with(change: impl FnOnce(&mut Inspection)) -> Inspection {
        let mut it = Inspection {
            bytes: 9_000,
            imports: Vec::new(),
            exports: Vec::new(),
            hook: Some(Hook::ConflictResolver),
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

    fn class(change: impl FnOnce(&mut Inspection)) -> Result<Class, Measure> {
        Limits::default().needs(&with(change)).map(|needs| needs.class).map_err(|beyond| beyond.what)
    }

    #[test]
    fn the_strictest_class_that_a_component_fits_is_the_one_that_it_needs() {
        assert_eq!(class(|_| ()), Ok(Class::Standard));
        assert_eq!(class(|it| it.bytes = 1 << 20), Ok(Class::Standard));
        assert_eq!(class(|it| it.bytes = (1 << 20) + 1), Ok(Class::Interpreted));
        assert_eq!(class(|it| it.instances = 17), Ok(Class::Interpreted));
        assert_eq!(class(|it| it.largest_function = 427_000), Ok(Class::Interpreted));
        assert_eq!(class(|it| it.bytes = (32 << 20) + 1), Err(Measure::Component));
        assert_eq!(class(|it| it.instances = 49), Err(Measure::Instances));
        assert_eq!(class(|it| it.largest_function = (512 << 10) + 1), Err(Measure::Function));
    }

    #[test]
    fn what_is_asked_with_every_operation_has_no_interpreter() {
        let of = |hook, bytes| class(|it| (it.hook, it.bytes) = (Some(hook), bytes));
        let (go, javascript) = (4_400_000, 12_000_000);
        assert_eq!(of(Hook::ConsistencyPolicy, go), Ok(Class::Interpreted));
        assert_eq!(of(Hook::ConsistencyPolicy, javascript), Err(Measure::Component));
        assert_eq!(of(Hook::RoutingHook, go), Err(Measure::Component));
        assert_eq!(of(Hook::ConflictResolver, javascript), Ok(Class::Interpreted));
        let refused = Limits::default().needs(&with(|it| (it.hook, it.bytes) = (Some(Hook::RoutingHook), go)));
        assert_eq!(refused.unwrap_err().to_string(), "has 4400000 bytes; at most 1048576 are allowed");
    }

    #[test]
    fn a_wider_class_is_needed_for_a_reason() {
        let needs = Limits::default().needs(&with(|it| (it.bytes, it.instances) = (4_400_000, 17))).unwrap();
        assert_eq!(needs.beyond.len(), 2);
        let said = "class interpreted: it has 4400000 bytes; at most 1048576 are allowed in class standard";
        assert_eq!(needs.to_string(), said);
        assert_eq!(Limits::default().needs(&with(|_| ())).unwrap().to_string(), "class standard");
    }
}
