//! Guests made from WebAssembly text: a few lines make a plugin do anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{PackageId, Resolve};

/// A guest of one world; every function can be replaced.
#[derive(Clone)]
pub(crate) struct Guest {
    world: &'static str,
    name: String,
    /// Imports of the core module, placed before its memory.
    pub(crate) imports: String,
    /// More fields of the core module.
    pub(crate) fields: String,
    pub(crate) describe: String,
    pub(crate) configure: String,
    /// `decide`, `resolve` or `partition-key`.
    pub(crate) answer: String,
    pub(crate) samples: String,
    pub(crate) prefer: String,
    /// `resolve-many`, which version 0.1.0 does not have.
    pub(crate) many: String,
    pub(crate) pages: u32,
    hook: &'static str,
    version: &'static str,
}

/// Addresses of static results in a guest's memory.
const MANIFEST: usize = 100;
const STRINGS: usize = 200;
const CONFIGURED: usize = 400;
pub(crate) const ANSWER: usize = 500;
const EMPTY_LIST: usize = 600;
/// Where the verdicts on several questions are, above what the questions take.
const VERDICTS: usize = 60_000;
/// The first byte of the guest's heap.
const HEAP: usize = 4096;

impl Guest {
    /// A policy that wants `required` answers.
    pub(crate) fn policy(name: &str, required: u8) -> Self {
        let mut answer = [0_u8; 24];
        answer[4] = required;
        answer[8..12].copy_from_slice(&1000_u32.to_le_bytes());
        Self::new("consistency-policy", name, &answer)
    }

    /// A resolver that always answers keep-all.
    pub(crate) fn resolver(name: &str) -> Self {
        let mut answer = [0_u8; 16];
        answer[4] = 2;
        Self::new("conflict-resolver", name, &answer)
    }

    /// A routing hook whose partition key is the one byte 'p'.
    pub(crate) fn routing(name: &str) -> Self {
        let mut answer = [0_u8; 13];
        answer[4..8].copy_from_slice(&((ANSWER + 12) as u32).to_le_bytes());
        answer[8] = 1;
        answer[12] = b'p';
        Self::new("routing-hook", name, &answer)
    }

    fn new(world: &'static str, name: &str, answer: &[u8]) -> Self {
        Self {
            world,
            name: name.to_owned(),
            imports: String::new(),
            fields: data(ANSWER, answer),
            describe: format!("(i32.const {MANIFEST})"),
            configure: format!("(i32.const {CONFIGURED})"),
            answer: format!("(i32.const {ANSWER})"),
            samples: format!("(i32.const {EMPTY_LIST})"),
            prefer: format!("(i32.const {CONFIGURED})"),
            many: keep_all_of_many(),
            pages: 1,
            hook: world,
            version: "0.1.0",
        }
    }

    /// The same for another released version of the interface than the first.
    pub(crate) fn of_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Runs `body` before it answers a question that triggers it: for a policy one about a value of 666 bytes, for a resolver one about
    /// any key but the probe's, for a routing hook one about a key of 3 bytes.
    pub(crate) fn when_triggered(mut self, body: &str) -> Self {
        let triggered = match self.world {
            "consistency-policy" => "(i32.eq (local.get 5) (i32.const 666))",
            "conflict-resolver" => "(i32.ne (local.get 1) (i32.const 5))",
            _ => "(i32.eq (local.get 1) (i32.const 3))",
        };
        self.answer = format!("(if {triggered} (then {body})) {}", self.answer);
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn calling_itself_a(mut self, hook: &'static str) -> Self {
        self.hook = hook;
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut module = wat::parse_str(self.module()).unwrap_or_else(|error| panic!("{error}"));
        let (resolve, package) = &WIT[self.version];
        let world = resolve.select_world(&[*package], Some(self.world)).unwrap();
        embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).unwrap();
        ComponentEncoder::default().module(&module).unwrap().validate(false).encode().unwrap()
    }

    fn module(&self) -> String {
        let strings = [self.name.as_str(), "1.0.0", self.hook];
        let mut manifest = Vec::new();
        let mut texts = Vec::new();
        for text in strings {
            manifest.extend(((STRINGS + texts.len()) as u32).to_le_bytes());
            manifest.extend((text.len() as u32).to_le_bytes());
            texts.extend(text.as_bytes());
        }
        manifest.push(1);
        let Self { imports, fields, describe, configure, answer, samples, prefer, pages, .. } = self;
        let (manifest, texts) = (data(MANIFEST, &manifest), data(STRINGS, &texts));
        let reset = format!("(global.set $heap (i32.const {HEAP}))");
        let (many, more) = match self.version {
            "0.1.0" => (String::new(), ""),
            _ => {
                let name = "witan:plugin/resolver@0.1.0#resolve-many";
                let many = &self.many;
                (
                    format!(r#"(func (export "{name}") (param i32 i32) (result i32) (local $i i32) {reset} {many})"#),
                    "i32 i32",
                )
            }
        };
        let exports = match self.world {
            "consistency-policy" => {
                let params = "i32 ".repeat(10);
                format!(
                    r#"(func (export "witan:plugin/policy@0.1.0#decide") (param {params}) (result i32) {answer})
                       (func (export "cabi_post_witan:plugin/policy@0.1.0#decide") (param i32) {reset})"#
                )
            }
            "conflict-resolver" => {
                let params = "i32 ".repeat(6);
                format!(
                    r#"(func $resolve (export "witan:plugin/resolver@0.1.0#resolve") (param {params}) (result i32)
                         (local $i i32) (local $sum i32) {answer})
                       (func (export "cabi_post_witan:plugin/resolver@0.1.0#resolve") (param i32) {reset})
                       (func (export "witan:plugin/resolver@0.1.0#samples") (result i32) {samples}) {many}"#
                )
            }
            _ => format!(
                r#"(func (export "witan:plugin/routing@0.1.0#partition-key") (param i32 i32) (result i32) {answer})
                   (func (export "cabi_post_witan:plugin/routing@0.1.0#partition-key") (param i32) {reset})
                   (func (export "witan:plugin/routing@0.1.0#prefer-replicas") (param i32 i32 i32 i32 {more}) (result i32)
                     {reset} {prefer})"#
            ),
        };
        format!(
            r#"(module {imports}
                 (memory (export "memory") {pages})
                 (global $heap (mut i32) (i32.const {HEAP}))
                 (global $state (mut i32) (i32.const 0))
                 (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local i32)
                   (local.set 4 (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                   (global.set $heap (i32.add (local.get 4) (local.get 3)))
                   (local.get 4))
                 (func (export "witan:plugin/plugin@0.1.0#describe") (result i32) {describe})
                 (func (export "witan:plugin/plugin@0.1.0#configure") (param i32 i32) (result i32) {configure})
                 {exports} {manifest} {texts} {fields})"#
        )
        .replace("@0.1.0", &format!("@{}", self.version))
    }
}

/// The body of a `resolve-many` that keeps all siblings of each question.
fn keep_all_of_many() -> String {
    format!(
        r#"(i32.store (i32.const {EMPTY_LIST}) (i32.const {VERDICTS}))
           (i32.store offset=4 (i32.const {EMPTY_LIST}) (local.get 1))
           (block $end (loop $next
             (br_if $end (i32.eq (local.get $i) (local.get 1)))
             (i32.store8 offset={VERDICTS} (i32.mul (local.get $i) (i32.const 16)) (i32.const 0))
             (i32.store8 offset={TAG} (i32.mul (local.get $i) (i32.const 16)) (i32.const 2))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br $next)))
           (i32.const {EMPTY_LIST})"#,
        TAG = VERDICTS + 4
    )
}

/// A data segment.
pub(crate) fn data(at: usize, bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
    format!(r#"(data (i32.const {at}) "{text}")"#)
}

/// Every released version.
static WIT: LazyLock<BTreeMap<&str, (Resolve, PackageId)>> = LazyLock::new(|| {
    // Of the plugin host's tests, and of those of real processes.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let wit = above.map(|folder| folder.join("wit")).find(|wit| wit.is_dir()).unwrap();
    let version = |version| {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(wit.join(version)).unwrap();
        (version, (resolve, package))
    };
    ["0.1.0", "0.2.0"].map(version).into()
});
