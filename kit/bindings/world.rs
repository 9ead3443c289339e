//! What the generators of bindings need to know of a world.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use wit_parser::{InterfaceId, Resolve, Type, TypeDefKind, TypeId, WorldId, WorldItem};

/// A world of a resolved package.
pub(super) struct World<'a> {
    pub(super) resolve: &'a Resolve,
    pub(super) name: &'a str,
    /// The interfaces that the plugin calls.
    pub(super) imports: Vec<InterfaceId>,
    /// The interfaces that the plugin implements.
    pub(super) exports: Vec<InterfaceId>,
}

impl<'a> World<'a> {
    pub(super) fn new(resolve: &'a Resolve, id: WorldId) -> Self {
        let world = &resolve.worlds[id];
        let of = |item: &WorldItem| match item {
            WorldItem::Interface { id, .. } => Some(*id),
            WorldItem::Function(_) | WorldItem::Type { .. } => None,
        };
        let imports = world.imports.values().filter_map(of).collect();
        let exports = world.exports.values().filter_map(of).collect();
        Self { resolve, name: &world.name, imports, exports }
    }

    /// The types that its interfaces define, by names of which each is there once: bindings have them in one place.
    pub(super) fn types(&self) -> Result<Vec<TypeId>> {
        let mut names = BTreeSet::new();
        let mut types = Vec::new();
        for interface in self.imports.iter().chain(&self.exports) {
            for (name, id) in &self.resolve.interfaces[*interface].types {
                if !matches!(self.resolve.types[*id].kind, TypeDefKind::Type(_)) {
                    ensure!(names.insert(name), "two interfaces of {} have a type {name}", self.name);
                    types.push(*id);
                }
            }
        }
        Ok(types)
    }

    /// The type behind the aliases by which interfaces use each other's types.
    pub(super) fn plain(&self, id: TypeId) -> TypeId {
        match &self.resolve.types[id].kind {
            TypeDefKind::Type(Type::Id(other)) => self.plain(*other),
            _ => id,
        }
    }

    /// What a type is, unless it is primitive.
    pub(super) fn kind(&self, ty: &Type) -> Option<&'a TypeDefKind> {
        match ty {
            Type::Id(id) => Some(&self.resolve.types[self.plain(*id)].kind),
            _ => None,
        }
    }
}

/// `latency-p50-us` as the name of a type: `LatencyP50Us`.
pub(super) fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('-').map(word).collect()
}

/// `deadline-ms` as the name of a parameter: `deadlineMs`.
pub(super) fn lower_camel(name: &str) -> String {
    let name = camel(name);
    name[..1].to_lowercase() + &name[1..]
}
