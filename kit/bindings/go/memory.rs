//! Values between Go and memory, at the places that the canonical ABI gives them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use wit_parser::{Type, TypeDefKind, TypeId};

use super::{FLAT, Go};
use crate::bindings::world::camel;

/// The Go type of a list that is bytes.
const BYTES: &str = "[]uint8";

impl Go<'_> {
    /// An expression that makes a parameter of the flat ones from `flat.len()` on, which it adds with their types.
    pub(super) fn flat(&mut self, ty: &Type, flat: &mut Vec<&'static str>) -> Result<String> {
        let mut next = |ty: &'static str| {
            flat.push(ty);
            format!("p{}", flat.len() - 1)
        };
        Ok(match (ty, self.world.kind(ty)) {
            (Type::U8 | Type::U16 | Type::U32, _) => format!("{}({})", self.go_type(ty)?, next(FLAT)),
            (Type::U64, _) => next("uint64"),
            (Type::F64, _) => next("float64"),
            (Type::Bool, _) => format!("{} != 0", next(FLAT)),
            (Type::String, _) => format!("text({}, {})", next(FLAT), next(FLAT)),
            (_, Some(TypeDefKind::Enum(_))) => format!("{}({})", self.go_type(ty)?, next(FLAT)),
            (_, Some(TypeDefKind::List(of))) => {
                let (at, count) = (next(FLAT), next(FLAT));
                self.list(of, &at, &count)?
            }
            (_, Some(TypeDefKind::Record(record))) => {
                let mut fields = Vec::new();
                for field in &record.fields {
                    fields.push(self.flat(&field.ty, flat)?);
                }
                format!("{}{{{}}}", self.go_type(ty)?, fields.join(", "))
            }
            _ => bail!("Go has no bindings of this parameter"),
        })
    }

    /// An expression that makes a list of what is in memory.
    fn list(&mut self, of: &Type, at: &str, count: &str) -> Result<String> {
        if *of == Type::U8 {
            return Ok(format!("octets({at}, {count})"));
        }
        let size = self.sizes.size(of).size_wasm32();
        let (go, load) = (self.go_type(of)?, self.load(of, 0)?);
        Ok(format!("list({at}, {count}, {size}, func(at unsafe.Pointer) {go} {{ return {load} }})"))
    }

    /// An expression that makes a value of what is in memory, `offset` bytes after the variable `at`.
    fn load(&mut self, ty: &Type, offset: usize) -> Result<String> {
        let go = self.go_type(ty)?;
        let word = |offset: usize| format!("load[{FLAT}](at, {offset})");
        Ok(match (ty, self.world.kind(ty)) {
            (Type::String, _) => format!("text({}, {})", word(offset), word(offset + 4)),
            (Type::Bool | Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::F64, _)
            | (_, Some(TypeDefKind::Enum(_))) => format!("load[{go}](at, {offset})"),
            (_, Some(TypeDefKind::List(of))) => self.list(of, &word(offset), &word(offset + 4))?,
            (_, Some(TypeDefKind::Tuple(tuple))) => {
                let mut parts = Vec::new();
                for (of_part, part) in self.sizes.field_offsets(tuple.types.iter()) {
                    parts.push((offset + of_part.size_wasm32(), *part));
                }
                let loaded = parts.into_iter().map(|(offset, part)| self.load(&part, offset));
                format!("{go}{{{}}}", loaded.collect::<Result<Vec<_>>>()?.join(", "))
            }
            (Type::Id(id), Some(TypeDefKind::Record(_))) => {
                self.loaded.insert(self.world.plain(*id));
                format!("load{go}(unsafe.Add(at, {offset}))")
            }
            _ => bail!("Go has no bindings of {go} where the host gives it"),
        })
    }

    /// Statements that write a value into memory, `offset` bytes after the variable `at`.
    pub(super) fn store(&mut self, out: &mut String, ty: &Type, offset: usize, value: &str) -> Result<()> {
        let go = self.go_type(ty)?;
        match (ty, self.world.kind(ty)) {
            (Type::String, _) => writeln!(out, "\tstoreText(at, {offset}, {value})")?,
            (Type::Bool | Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::F64, _)
            | (_, Some(TypeDefKind::Enum(_))) => writeln!(out, "\tstore(at, {offset}, {value})")?,
            (_, Some(TypeDefKind::List(_))) if go == BYTES => writeln!(out, "\tstoreOctets(at, {offset}, {value})")?,
            (_, Some(TypeDefKind::List(of))) => {
                let (size, of_go) = (self.sizes.size(of).size_wasm32(), self.go_type(of)?);
                writeln!(out, "\tstoreList(at, {offset}, {value}, {size}, func(at unsafe.Pointer, it {of_go}) {{")?;
                self.store(out, of, 0, "it")?;
                out.push_str("\t})\n");
            }
            (Type::Id(id), Some(TypeDefKind::Record(_) | TypeDefKind::Variant(_))) => {
                self.stored.insert(self.world.plain(*id));
                writeln!(out, "\tstore{go}(unsafe.Add(at, {offset}), {value})")?;
            }
            (_, Some(TypeDefKind::Option(of))) => {
                let align = self.sizes.align(of).align_wasm32();
                writeln!(out, "\tif {value} == nil {{\n\t\tstore(at, {offset}, uint8(0))\n\t}} else {{")?;
                writeln!(out, "\t\tstore(at, {offset}, uint8(1))")?;
                self.store(out, of, offset + align, &format!("*{value}"))?;
                out.push_str("\t}\n");
            }
            _ => bail!("Go has no bindings of {go} where the host takes it"),
        }
        Ok(())
    }

    /// The functions that read and write the types which the others need.
    pub(super) fn memory(&mut self, out: &mut String) -> Result<()> {
        let mut written = BTreeSet::new();
        while let Some(id) = self.loaded.iter().find(|id| !written.contains(*id)).copied() {
            written.insert(id);
            self.loading(out, id)?;
        }
        written.clear();
        while let Some(id) = self.stored.iter().find(|id| !written.contains(*id)).copied() {
            written.insert(id);
            self.storing(out, id)?;
        }
        Ok(())
    }

    /// The function that reads a record.
    fn loading(&mut self, out: &mut String, id: TypeId) -> Result<()> {
        let name = self.name(id)?;
        let TypeDefKind::Record(record) = &self.world.resolve.types[id].kind else { bail!("{name} is no record") };
        writeln!(out, "\nfunc load{name}(at unsafe.Pointer) {name} {{\n\treturn {name}{{")?;
        for (field, offset) in record.fields.iter().zip(self.offsets(record.fields.iter().map(|field| &field.ty))) {
            let loaded = self.load(&field.ty, offset)?;
            writeln!(out, "\t\t{}: {loaded},", camel(&field.name))?;
        }
        out.push_str("\t}\n}\n");
        Ok(())
    }

    /// The function that writes a record or a variant.
    fn storing(&mut self, out: &mut String, id: TypeId) -> Result<()> {
        let name = self.name(id)?;
        writeln!(out, "\nfunc store{name}(at unsafe.Pointer, it {name}) {{")?;
        match &self.world.resolve.types[id].kind {
            TypeDefKind::Record(record) => {
                let offsets = self.offsets(record.fields.iter().map(|field| &field.ty));
                for (field, offset) in record.fields.iter().zip(offsets) {
                    self.store(out, &field.ty, offset, &format!("it.{}", camel(&field.name)))?;
                }
            }
            TypeDefKind::Variant(variant) => {
                let payload =
                    self.sizes.payload_offset(variant.tag(), variant.cases.iter().map(|case| case.ty.as_ref()));
                out.push_str("\tstore(at, 0, it.tag)\n\tswitch it.tag {\n");
                for (index, case) in variant.cases.iter().enumerate() {
                    if let Some(ty) = &case.ty {
                        writeln!(out, "\tcase {index}:")?;
                        self.store(out, ty, payload.size_wasm32(), &format!("it.case{index}"))?;
                    }
                }
                out.push_str("\t}\n");
            }
            other => bail!("Go has no bindings of {name}, a {}", other.as_str()),
        }
        out.push_str("}\n");
        Ok(())
    }

    /// Where the fields of a record are.
    fn offsets<'t>(&self, types: impl Iterator<Item = &'t Type>) -> Vec<usize> {
        self.sizes.field_offsets(types).into_iter().map(|(offset, _)| offset.size_wasm32()).collect()
    }
}
