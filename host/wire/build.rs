//! Compiles every proto file to Rust with a compiler written in Rust, so that protoc is not needed.

use std::path::{Path, PathBuf};

use prost::Message;

#[path = "build/shapes.rs"]
mod shapes;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Of this build: the script may have been compiled for another checkout that shares the target folder.
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let package = root.join("witan/v1");
    println!("cargo:rerun-if-changed={}", package.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/shapes.rs");

    let mut files: Vec<PathBuf> = std::fs::read_dir(&package)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();

    let descriptors = protox::Compiler::new([&root])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("shapes.rs"), shapes::generate(&descriptors)?)?;

    // Every client and every server decodes with the codec that weighs a message first.
    let codec = "crate::codec::WeighingCodec";
    let boxed = |builder: tonic_prost_build::Builder, path: &&str| builder.boxed(format!("{}.{path}", shapes::PACKAGE));
    let builder = shapes::BOXED.iter().fold(tonic_prost_build::configure(), boxed);
    builder.bytes(".").codec_path(codec).compile_fds(descriptors)?;
    Ok(())
}
