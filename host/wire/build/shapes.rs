//! Generates the table by which messages are weighed: for each message what its fields take in memory once they are decoded. The sizes
//! are expressions that the compiler evaluates, so that they are those of the generated structs.
//!
//! What no message of the package has, and what the table therefore does not describe, fails the build: maps, groups, messages within
//! messages, messages that contain themselves, and types of other packages.

use std::collections::BTreeMap;
use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

pub(crate) const PACKAGE: &str = "witan.v1";

/// Repeated fields whose number of items is bounded, and the constants that say how many there may be.
const BOUNDS: [(&str, &str); 4] = [
    ("SessionRequestBatch.requests", "crate::weigh::SESSION_REQUESTS"),
    ("RequestBatch.requests", "crate::frame::BATCH_ITEMS"),
    ("AnswerBatch.answers", "crate::frame::BATCH_ITEMS"),
    ("ClearRangeRequest.ranges", "crate::range::CLEARED_TOKENS"),
];

/// Messages that are kept on the heap, since they are large and rarely there: they would make each item of a list as large.
pub(crate) const BOXED: [&str; 1] = ["Binding.candidate"];

type Messages<'a> = BTreeMap<&'a str, &'a DescriptorProto>;

/// The table as Rust code, to be included in the module `weigh`.
pub(crate) fn generate(descriptors: &FileDescriptorSet) -> Result<String, String> {
    let files = descriptors.file.iter().filter(|file| file.package() == PACKAGE);
    let messages: Messages = files.flat_map(|file| &file.message_type).map(|each| (each.name(), each)).collect();
    let mut code = String::new();
    let (mut bounds, mut deepest) = (0, 0);
    for message in messages.values() {
        if !message.nested_type.is_empty() {
            return Err(format!("{}: messages within messages and maps are not weighed", message.name()));
        }
        deepest = deepest.max(depth(message, &messages, 1)?);
        bounds += shape(&mut code, message)?;
    }
    if bounds != BOUNDS.len() {
        return Err("a bound names a field that does not exist".to_owned());
    }
    let all = messages.keys().map(|name| format!("    MessageType::of::<v1::{name}>(),\n"));
    let all: String = all.collect();
    let _ = write!(
        code,
        "/// Levels of the message that nests deepest; a message without messages in it has one.\n\
         pub const DEEPEST: u32 = {deepest};\n\n\
         /// Every message of the package.\n\
         pub static MESSAGES: &[MessageType] = &[\n{all}];\n"
    );
    Ok(code)
}

/// Levels of a message, which is itself at level `level`.
fn depth(message: &DescriptorProto, messages: &Messages, level: usize) -> Result<usize, String> {
    if level > messages.len() {
        return Err(format!("{} contains itself", message.name()));
    }
    let mut deepest = level;
    for field in message.field.iter().filter(|field| field.r#type() == Type::Message) {
        let name = local(field)?;
        let inner = messages.get(name).ok_or_else(|| format!("no message {name}"))?;
        deepest = deepest.max(depth(inner, messages, level + 1)?);
    }
    Ok(deepest)
}

/// The name of a field's message within the package.
fn local(field: &FieldDescriptorProto) -> Result<&str, String> {
    let name = field.type_name();
    let inside =
        name.strip_prefix('.').and_then(|name| name.strip_prefix(PACKAGE)).and_then(|name| name.strip_prefix('.'));
    inside.ok_or_else(|| format!("{name} is of another package"))
}

/// Writes the shape of one message, and returns the number of its bounded fields.
fn shape(code: &mut String, message: &DescriptorProto) -> Result<usize, String> {
    let name = message.name();
    let last = message.field.iter().map(FieldDescriptorProto::number).max().unwrap_or(0);
    let mut fields = vec!["None".to_owned(); usize::try_from(last).map_err(|error| error.to_string())? + 1];
    let (mut slots, mut bounds) = (0, 0);
    for field in &message.field {
        let (mut content, size) = content(field)?;
        if BOXED.contains(&&*format!("{name}.{}", field.name())) {
            content = content.replace("Content::Message", "Content::Boxed");
        }
        let many = if field.label() == Label::Repeated {
            let path = format!("{name}.{}", field.name());
            let bound = BOUNDS.iter().find(|(bounded, _)| *bounded == path).map(|(_, bound)| *bound);
            bounds += usize::from(bound.is_some());
            slots += 1;
            let (slot, most) = (slots - 1, bound.unwrap_or("usize::MAX"));
            let field = field.name();
            format!("Some(Many {{ message: {name:?}, name: {field:?}, size: {size}, slot: {slot}, most: {most} }})")
        } else {
            "None".to_owned()
        };
        let at = usize::try_from(field.number()).map_err(|error| error.to_string())?;
        fields[at] = format!("Some(Field {{ content: {content}, many: {many} }})");
    }
    let fields: String = fields.into_iter().map(|field| format!("        {field},\n")).collect();
    let _ = write!(
        code,
        "static {name}: Shape = Shape {{\n    name: {name:?},\n    size: size_of::<v1::{name}>(),\n    slots: {slots},\n    \
         fields: &[\n{fields}    ],\n}};\n\
         impl Weighed for v1::{name} {{\n    const SHAPE: &'static Shape = &{name};\n}}\n\n"
    );
    Ok(bounds)
}

/// What a field holds, and the size of one element as an expression.
fn content(field: &FieldDescriptorProto) -> Result<(String, String), String> {
    let number = |wire_type: &str, size: &str| (format!("Content::Number(WireType::{wire_type})"), size.to_owned());
    Ok(match field.r#type() {
        Type::Bool => number("Varint", "1"),
        Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => number("Varint", "4"),
        Type::Int64 | Type::Uint64 | Type::Sint64 => number("Varint", "8"),
        Type::Fixed32 | Type::Sfixed32 | Type::Float => number("ThirtyTwoBit", "4"),
        Type::Fixed64 | Type::Sfixed64 | Type::Double => number("SixtyFourBit", "8"),
        Type::String => ("Content::Text".to_owned(), "size_of::<String>()".to_owned()),
        Type::Bytes => ("Content::Blob".to_owned(), "size_of::<Bytes>()".to_owned()),
        Type::Message => {
            let name = local(field)?;
            (format!("Content::Message(&{name})"), format!("size_of::<v1::{name}>()"))
        }
        Type::Group => return Err(format!("{}: groups are not weighed", field.name())),
    })
}
