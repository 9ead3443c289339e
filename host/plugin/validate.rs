//! The rules that a component must keep, checked on its bytes before anything is compiled.

use wasmparser::{Chunk, Encoding, MemoryType, Parser, Payload, TableType};
use witan_kernel::hook::Hook;

use crate::class::{Measure, Needs, Use};
use crate::compile::Wanted;
use crate::digest::Digest;
use crate::effort::{self, EffortError};
use crate::limit::{Budget, Limits};
use crate::version::Version;

/// Foreign imports, or exports, that a refusal lists.
const LISTED: usize = 20;

/// Why a component is refused before it is compiled. The sentence continues its name: "is empty".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ComponentError {
    /// It is beyond a limit of the widest class that is for its hook.
    #[error("{0}")]
    Beyond(Use),
    #[error("is empty")]
    Empty,
    #[error("is a core module, not a component; turn it into one, say with `wasm-tools component new`")]
    CoreModule,
    #[error("is WebAssembly of a version that is not known, or ends early")]
    Version,
    #[error("is WebAssembly text; only binary components are accepted, say from `wasm-tools parse`")]
    Text,
    #[error("is not WebAssembly")]
    NotWasm,
    #[error("ends early, as a half-written file does: {0}")]
    EndsEarly(String),
    #[error("is malformed: {0}")]
    Malformed(String),
    #[error("imports {names}; a plugin may import {} only{}", .version.imports()[0], wasi_remedy(*.wasi))]
    Imports { names: String, wasi: bool, version: Version },
    #[error("exports {found}; a plugin exports one of {}", interfaces())]
    Exports { found: String },
    #[error("does not export {}", .0.plugin())]
    NotAPlugin(Version),
    #[error(transparent)]
    Effort(#[from] EffortError),
}

fn wasi_remedy(wasi: bool) -> &'static str {
    if wasi { "; WASI is not linked: build for wasm32-unknown-unknown, or stub it out" } else { "" }
}

/// The interfaces of hooks, in the version for which plugins are written today.
fn interfaces() -> String {
    Hook::ALL.map(|hook| Version::NEWEST.interface(hook)).join(", ")
}

/// A component that keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Valid {
    /// The hook that it implements.
    pub(crate) hook: Hook,
    /// The class that it needs.
    pub(crate) needs: Needs,
    /// Its limits: those of its hook in its class.
    pub(crate) budget: Budget,
}

impl Valid {
    /// What the compiler has to know of it.
    pub(crate) fn wanted<'a>(&self, digest: Digest, bytes: &'a [u8]) -> Wanted<'a> {
        Wanted { digest, bytes, class: self.needs.class }
    }
}

/// Checks the bytes, and finds the hook that they implement and the class that they need.
pub(crate) fn validate(bytes: &[u8], limits: &Limits) -> Result<Valid, ComponentError> {
    let most = limits.largest_component();
    if bytes.len() > most {
        return Err(ComponentError::bytes(bytes.len(), most));
    }
    check_preamble(bytes)?;
    let contents = Contents::read(bytes)?;
    let found = find_hook(&contents);
    // What a component imports says more than what it lacks: of the version of its exports, or of the newest.
    check_imports(&contents, found.as_ref().map_or(Version::NEWEST, |(version, _)| *version))?;
    let (_, hook) = found?;
    let needs = limits.needs(&contents.inspection(bytes.len(), Some(hook))).map_err(ComponentError::Beyond)?;
    let of_class = limits.of(needs.class);
    effort::check(bytes, of_class)?;
    Ok(Valid { hook, needs, budget: of_class.budget(hook).clone() })
}

impl ComponentError {
    /// A component has too many bytes.
    pub(crate) fn bytes(has: usize, most: usize) -> Self {
        Self::Beyond(Use { what: Measure::Component, has: has as u64, most: most as u64 })
    }
}

/// What a component consists of, for its author: whether or not it keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Size of the component, in bytes.
    pub bytes: usize,
    /// Names of what it imports.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
    /// The hook whose interface it exports, if it exports one and no other.
    pub hook: Option<Hook>,
    /// Core functions that it defines.
    pub functions: usize,
    /// Size of its largest function body, in bytes.
    pub largest_function: usize,
    /// Core instances, which it makes of its core modules.
    pub instances: usize,
    /// Memories that its core modules define.
    pub memories: usize,
    /// Size of these memories at the start, in bytes.
    pub memory_bytes: u64,
    /// Tables that its core modules define.
    pub tables: usize,
    /// Elements of these tables at the start.
    pub table_elements: u64,
}

/// Looks at a component without judging it. Fails if the bytes are no binary component.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Inspection, ComponentError> {
    check_preamble(bytes)?;
    let contents = Contents::read(bytes)?;
    let hook = find_hook(&contents).ok().map(|(_, hook)| hook);
    Ok(contents.inspection(bytes.len(), hook))
}

fn check_preamble(bytes: &[u8]) -> Result<(), ComponentError> {
    match bytes {
        [] => Err(ComponentError::Empty),
        [b'\0', b'a', b's', b'm', 0x01, 0, 0, 0, ..] => Err(ComponentError::CoreModule),
        [b'\0', b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', ..] => Err(ComponentError::Version),
        _ if bytes.trim_ascii_start().starts_with(b"(") => Err(ComponentError::Text),
        _ => Err(ComponentError::NotWasm),
    }
}

/// What a component contains, nested components and modules included.
#[derive(Default)]
struct Contents {
    /// Of the outermost component.
    imports: Vec<String>,
    /// Of the outermost component.
    exports: Vec<String>,
    functions: usize,
    /// Bytes of the largest function body.
    largest: usize,
    /// Core instances that are made of core modules.
    instances: usize,
    memories: Vec<MemoryType>,
    tables: Vec<TableType>,
}

impl Contents {
    fn read(bytes: &[u8]) -> Result<Self, ComponentError> {
        Self::parse(bytes).map_err(|error| match ends_early(bytes) {
            true => ComponentError::EndsEarly(error.to_string()),
            false => ComponentError::Malformed(error.to_string()),
        })
    }

    fn parse(bytes: &[u8]) -> wasmparser::Result<Self> {
        let mut contents = Self::default();
        // Depth in nested components and modules; only the outermost one's imports and exports are the plugin's.
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            contents.take(payload?, &mut depth)?;
        }
        Ok(contents)
    }

    fn take(&mut self, payload: Payload<'_>, depth: &mut usize) -> wasmparser::Result<()> {
        match payload {
            Payload::Version { encoding: Encoding::Component | Encoding::Module, .. } => *depth += 1,
            Payload::End(_) => *depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if *depth == 1 => {
                for import in section {
                    self.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if *depth == 1 => {
                for export in section {
                    self.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::CodeSectionStart { count, .. } => self.functions += count as usize,
            Payload::CodeSectionEntry(body) => {
                self.largest = self.largest.max(body.range().len());
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    self.instances += usize::from(matches!(instance?, wasmparser::Instance::Instantiate { .. }));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memories.push(memory?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    self.tables.push(table?.ty);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inspection(&self, bytes: usize, hook: Option<Hook>) -> Inspection {
        Inspection {
            bytes,
            hook,
            functions: self.functions,
            largest_function: self.largest,
            instances: self.instances,
            memories: self.memories.len(),
            memory_bytes: self.memory_bytes(),
            tables: self.tables.len(),
            table_elements: self.table_elements(),
            imports: self.imports.clone(),
            exports: self.exports.clone(),
        }
    }

    /// Bytes of all memories at the start.
    fn memory_bytes(&self) -> u64 {
        let page = |memory: &MemoryType| 1_u64 << memory.page_size_log2.unwrap_or(16);
        self.memories.iter().fold(0, |sum, it| sum.saturating_add(it.initial.saturating_mul(page(it))))
    }

    /// Elements of all tables at the start.
    fn table_elements(&self) -> u64 {
        self.tables.iter().fold(0, |sum, table| sum.saturating_add(table.initial))
    }
}

/// True when bytes that cannot be parsed are the beginning of a component: the parser would go on if more followed.
fn ends_early(mut bytes: &[u8]) -> bool {
    let mut parser = Parser::new(0);
    let mut outer = Vec::new();
    loop {
        let mut again = parser.clone();
        let payload = match parser.parse(bytes, true) {
            Ok(Chunk::Parsed { payload, consumed }) => {
                bytes = &bytes[consumed..];
                payload
            }
            Ok(Chunk::NeedMoreData(_)) => return true,
            Err(_) => return matches!(again.parse(bytes, false), Ok(Chunk::NeedMoreData(_))),
        };
        match payload {
            Payload::ModuleSection { parser: inner, .. } | Payload::ComponentSection { parser: inner, .. } => {
                outer.push(std::mem::replace(&mut parser, inner));
            }
            Payload::End(_) => match outer.pop() {
                Some(next) => parser = next,
                None => return false,
            },
            _ => {}
        }
    }
}

fn check_imports(contents: &Contents, version: Version) -> Result<(), ComponentError> {
    let (imports, own) = (contents.imports.iter().map(String::as_str), version.imports());
    let foreign: Vec<&str> = imports.filter(|name| !own.contains(name)).take(LISTED).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let wasi = foreign.iter().any(|name| name.starts_with("wasi:"));
    Err(ComponentError::Imports { names: foreign.join(", "), wasi, version })
}

/// The one hook whose interface a component exports, in one version.
fn find_hook(contents: &Contents) -> Result<(Version, Hook), ComponentError> {
    let exports = |name: &str| contents.exports.iter().any(|export| export == name);
    let known = Version::ALL.into_iter().flat_map(|version| Hook::ALL.map(|hook| (version, hook)));
    let hooks: Vec<(Version, Hook)> = known.filter(|(version, hook)| exports(version.interface(*hook))).collect();
    let [(version, hook)] = hooks[..] else {
        let found = contents.exports.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        return Err(ComponentError::Exports { found: if found.is_empty() { "nothing".into() } else { found } });
    };
    if exports(version.plugin()) { Ok((version, hook)) } else { Err(ComponentError::NotAPlugin(version)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use witan_kernel::class::Class;

    use super::*;

    fn refused(bytes: &[u8]) -> ComponentError {
        validate(bytes, &Limits::default()).unwrap_err()
    }

    #[test]
    fn bytes_that_are_no_binary_component_are_refused_by_kind() {
        assert_eq!(refused(b""), ComponentError::Empty);
        assert_eq!(refused(b"(component)"), ComponentError::Text);
        assert_eq!(refused(b"\0asm\x01\0\0\0"), ComponentError::CoreModule);
        assert_eq!(refused(b"\x7fELF"), ComponentError::NotWasm);
        let limit = Limits::default().largest_component();
        assert_eq!(refused(&vec![0; limit + 1]), ComponentError::bytes(limit + 1, limit));
        assert_eq!(refused(b"\0asm\x0d\0\x01\0"), ComponentError::Exports { found: "nothing".into() });
    }

    #[test]
    fn a_component_that_ends_early_is_known_from_a_malformed_one() {
        let whole =
            wat::parse_str(r#"(component (core module (func nop) (memory 1)) (component (import "a" (func))))"#);
        let whole = whole.unwrap();
        assert!(matches!(refused(&whole), ComponentError::Exports { .. }));
        for end in 9..whole.len() {
            let error = refused(&whole[..end]);
            // An end between two sections leaves a smaller component.
            assert!(matches!(error, ComponentError::EndsEarly(_) | ComponentError::Exports { .. }), "{end}: {error}");
        }
        // A custom section whose name is longer than the section.
        let malformed = [&whole[..8], &[0, 1, 5]].concat();
        assert!(matches!(refused(&malformed), ComponentError::Malformed(_)));
    }

    /// A component with these imports and exports, none of which has functions.
    fn with(imports: &[&str], exports: &[&str]) -> Vec<u8> {
        let imports = imports.iter().map(|name| format!(r#"(import "{name}" (instance))"#));
        let exports = exports.iter().map(|name| format!(r#"(export "{name}" (instance $empty))"#));
        let fields: String = imports.chain(["(instance $empty)".to_owned()]).chain(exports).collect();
        wat::parse_str(format!("(component {fields})")).unwrap()
    }

    #[test]
    fn a_component_is_of_one_version() {
        let (plugin, policy) = ("witan:plugin/plugin", "witan:plugin/policy");
        let of = |version: &str| [plugin, policy].map(|name| format!("{name}@{version}"));
        let (first, second) = (of("0.1.0"), of("0.2.0"));
        let first = first.each_ref().map(String::as_str);
        let second = second.each_ref().map(String::as_str);
        for exports in [first, second] {
            let valid = validate(&with(&[], &exports), &Limits::default()).unwrap();
            assert_eq!((valid.hook, valid.needs.class), (Hook::ConsistencyPolicy, Class::Standard));
        }
        let host = ["witan:plugin/host@0.1.0"];
        assert!(validate(&with(&host, &first), &Limits::default()).is_ok());
        let foreign = refused(&with(&host, &second));
        let said = "imports witan:plugin/host@0.1.0; a plugin may import witan:plugin/host@0.2.0 only";
        assert_eq!(foreign.to_string(), said);
        let both = refused(&with(&[], &[first, second].concat()));
        assert!(matches!(both, ComponentError::Exports { .. }), "{both}");
        let half = refused(&with(&[], &[first[0], second[1]]));
        assert_eq!(half, ComponentError::NotAPlugin(Version::V0_2));
        let later = refused(&with(&[], &["witan:plugin/plugin@0.3.0", "witan:plugin/policy@0.3.0"]));
        assert!(matches!(later, ComponentError::Exports { .. }), "{later}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = validate(&bytes, &Limits::default());
            bytes.splice(0..0, *b"\0asm\x0d\0\x01\0");
            let _ = validate(&bytes, &Limits::default());
        }
    }
}
