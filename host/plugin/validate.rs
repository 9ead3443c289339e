//! What a component may be at all: read from its bytes, before anything is compiled.

use wasmparser::{Encoding, FunctionBody, MemoryType, Operator, Parser, Payload, TableType, Validator};
use witan_kernel::hook::Hook;

use crate::limit::{self, Limits};

/// What a plugin may import. Types carry no code.
const IMPORTS: [&str; 2] = ["witan:plugin/host@0.1.0", "witan:plugin/types@0.1.0"];
/// What every plugin exports.
const PLUGIN: &str = "witan:plugin/plugin@0.1.0";

/// The interface by which a hook is known.
fn interface(hook: Hook) -> &'static str {
    match hook {
        Hook::ConsistencyPolicy => "witan:plugin/policy@0.1.0",
        Hook::ConflictResolver => "witan:plugin/resolver@0.1.0",
        Hook::RoutingHook => "witan:plugin/routing@0.1.0",
    }
}

/// Checks the bytes and finds the hook that they implement. `Err` says why they are refused, for a person.
pub(crate) fn validate(bytes: &[u8], limits: &Limits) -> Result<Hook, String> {
    if bytes.len() > limits.artifact {
        return Err(format!("has {} bytes; at most {} are allowed", bytes.len(), limits.artifact));
    }
    check_preamble(bytes)?;
    let contents = Contents::read(bytes)?;
    check_imports(&contents)?;
    let hook = find_hook(&contents)?;
    check_sizes(&contents, limits.budget(hook).memory)?;
    Validator::new_with_features(crate::engine::features())
        .validate_all(bytes)
        .map_err(|error| format!("is not a valid component: {error}"))?;
    Ok(hook)
}

fn check_preamble(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [] => Err("is empty".into()),
        [b'\0', b'a', b's', b'm', 0x01, 0, 0, 0, ..] => {
            Err("is a core module, not a component; turn it into one, say with `wasm-tools component new`".into())
        }
        [b'\0', b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', ..] => Err("is WebAssembly of a version that is not known, or ends early".into()),
        _ if bytes.trim_ascii_start().starts_with(b"(") => {
            Err("is WebAssembly text; only binary components are accepted, say from `wasm-tools parse`".into())
        }
        _ => Err("is not WebAssembly".into()),
    }
}

#[derive(Default)]
struct Contents {
    imports: Vec<String>,
    exports: Vec<String>,
    functions: usize,
    largest: usize,
    tangle: u64,
    memories: Vec<MemoryType>,
    tables: Vec<TableType>,
}

impl Contents {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut contents = Self::default();
        // Depth in nested components and modules; only the outermost one's imports and exports are the plugin's.
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            contents.take(payload.map_err(|error| broken(&error))?, &mut depth).map_err(|error| broken(&error))?;
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
                self.tangle = self.tangle.max(tangle(&body)?);
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
}

/// See [`limit::FUNCTION_TANGLE`].
fn tangle(body: &FunctionBody<'_>) -> wasmparser::Result<u64> {
    let mut locals = 0_u64;
    for declared in body.get_locals_reader()? {
        locals = locals.saturating_add(u64::from(declared?.0));
    }
    let mut places = 0_u64;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        use Operator::{Block, Br, BrIf, BrTable, Else, End, If, Loop};
        let splits = matches!(
            operators.read()?,
            Block { .. } | Loop { .. } | If { .. } | Else | End | Br { .. } | BrIf { .. } | BrTable { .. }
        );
        places += u64::from(splits);
    }
    Ok(locals.saturating_mul(places))
}

fn broken(error: &wasmparser::BinaryReaderError) -> String {
    let text = error.to_string();
    if text.contains("unexpected end") {
        format!("ends early, as a half-written file does: {text}")
    } else {
        format!("is malformed: {text}")
    }
}

fn check_imports(contents: &Contents) -> Result<(), String> {
    let foreign: Vec<&str> =
        contents.imports.iter().map(String::as_str).filter(|name| !IMPORTS.contains(name)).take(20).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let wasi = if foreign.iter().any(|name| name.starts_with("wasi:")) {
        "; WASI is not linked: build for wasm32-unknown-unknown, or stub it out"
    } else {
        ""
    };
    Err(format!("imports {}; a plugin may import {} only{wasi}", foreign.join(", "), IMPORTS[0]))
}

fn find_hook(contents: &Contents) -> Result<Hook, String> {
    let exports = |name: &str| contents.exports.iter().any(|export| export == name);
    let hooks: Vec<Hook> = Hook::ALL.into_iter().filter(|hook| exports(interface(*hook))).collect();
    let [hook] = hooks[..] else {
        let wanted = Hook::ALL.map(interface).join(", ");
        let found = contents.exports.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "nothing".into() } else { found };
        return Err(format!("exports {found}; a plugin exports one of {wanted}"));
    };
    if exports(PLUGIN) { Ok(hook) } else { Err(format!("does not export {PLUGIN}")) }
}

fn check_sizes(contents: &Contents, memory: usize) -> Result<(), String> {
    if contents.functions > limit::FUNCTIONS {
        return Err(format!("has {} functions; at most {} are allowed", contents.functions, limit::FUNCTIONS));
    }
    if contents.largest > limit::FUNCTION_BYTES {
        return Err(format!(
            "has a function of {} bytes; at most {} are allowed",
            contents.largest,
            limit::FUNCTION_BYTES
        ));
    }
    if contents.tangle > limit::FUNCTION_TANGLE {
        return Err(format!(
            "has a function whose locals times branches are {}; at most {} are allowed: split it",
            contents.tangle,
            limit::FUNCTION_TANGLE
        ));
    }
    if contents.memories.len() > limit::STORE_ITEMS || contents.tables.len() > limit::STORE_ITEMS {
        return Err(format!(
            "has {} memories and {} tables; at most {} of each are allowed",
            contents.memories.len(),
            contents.tables.len(),
            limit::STORE_ITEMS
        ));
    }
    let page = |memory: &MemoryType| 1_u64 << memory.page_size_log2.unwrap_or(16);
    let bytes = contents.memories.iter().fold(0_u64, |sum, m| sum.saturating_add(m.initial.saturating_mul(page(m))));
    if bytes > memory as u64 {
        return Err(format!("starts with {bytes} bytes of memory; at most {memory} are allowed"));
    }
    let elements = contents.tables.iter().fold(0_u64, |sum, table| sum.saturating_add(table.initial));
    if elements > limit::TABLE_ELEMENTS as u64 {
        return Err(format!(
            "starts with {elements} elements in tables; at most {} are allowed",
            limit::TABLE_ELEMENTS
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(bytes: &[u8]) -> String {
        validate(bytes, &Limits::default()).unwrap_err()
    }

    #[test]
    fn what_is_not_a_binary_component_is_refused_by_name() {
        assert!(refused(b"").contains("empty"));
        assert!(refused(b"(component)").contains("text"));
        assert!(refused(b"\0asm\x01\0\0\0").contains("core module"));
        assert!(refused(b"\x7fELF").contains("not WebAssembly"));
        assert!(refused(&vec![0; limit::ARTIFACT_BYTES + 1]).contains("at most"));
        assert!(refused(b"\0asm\x0d\0\x01\0").contains("exports nothing"));
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
