//! `witan plugin sign`: signs components with a private key of Ed25519, which is made by `--generate`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use serde_json::json;
use witan_kernel::hexadecimal;
use witan_kernel::name::TenantId;
use witan_plugin::signature::{self, Signature, Statement};
use witan_plugin::{Described, inspect};

use super::COMPONENT;
use crate::cli::Global;
use crate::cli::args::{self, Limit, Source};
use crate::cli::output::{self, Output};
use crate::process::plugins::this_program;

/// What a file with a private key begins with.
const KEY_FILE: &str = "witan-signing-key-v1";
/// Limit of such a file: its first word, and 64 digits.
const KEY: Limit =
    Limit { field: "--key", bytes: 256, remedy: "name a file that `witan plugin sign --generate` has made" };

pub(super) const EXAMPLES: &str = "\
Writes the signature of FILE to FILE.sig, which `witan plugin push --signature` sends and which a coordinator finds beside a file in its \
plugin folder. What is signed is the component with its digest, name, version, and the tenant that it is for. --generate makes the private \
key first and prints its public key, which coordinators need: `witan plugin keys add`, or plugins.signing_keys in the configuration. Keep \
the private key where only whoever signs can read it.

Examples:
  witan plugin sign --generate --key release.key
  witan plugin sign set-union.wasm --key release.key
  witan plugin push set-union.wasm --signature set-union.wasm.sig
  witan plugin sign own.wasm --key carts.key --tenant carts";

/// Arguments of `plugin sign`.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// WebAssembly components
    #[arg(required_unless_present = "generate", value_name = "FILE", value_parser = args::path())]
    pub files: Vec<PathBuf>,
    /// The file with the private key
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub key: PathBuf,
    /// The key's id at the coordinators [default: the name of its file, without what follows the last dot]
    #[arg(long, value_name = "ID")]
    pub key_id: Option<String>,
    /// The tenant that the plugins are for [default: the operator's, for all tenants]
    #[arg(short, long)]
    pub tenant: Option<String>,
    /// Make a private key first; a file that is there is not replaced
    #[arg(long)]
    pub generate: bool,
}

pub(super) async fn sign(global: &Global, args: Sign) -> anyhow::Result<ExitCode> {
    let output = global.output;
    tokio::task::spawn_blocking(move || run(output, &args)).await?
}

fn run(output: Output, args: &Sign) -> anyhow::Result<ExitCode> {
    let owner = args.tenant.clone().map(TenantId::new).transpose()?;
    let from_name = || args.key.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let id = args.key_id.clone().or_else(from_name).unwrap_or_default();
    if args.generate {
        generate(&args.key)?;
    }
    let private = private_key(&args.key)?;
    let public = hexadecimal::encode(&signature::public_key(&private));
    if args.generate && output == Output::Text {
        output::line(&format!("{}: public key {public}, id {id}", args.key.display()))?;
    }
    let mut signed = Vec::new();
    for file in &args.files {
        let (described, signature) = sign_one(file, &private, &id, owner.as_ref())?;
        let beside = beside(file);
        std::fs::write(&beside, format!("{signature}\n")).with_context(|| format!("write {}", beside.display()))?;
        let Described { digest, name, version, .. } = described;
        if output == Output::Text {
            output::line(&format!("{}: {name}@{version}, digest {digest}, signed with {id}", beside.display()))?;
        }
        let (file, digest) = (beside.display().to_string(), digest.to_string());
        signed.push(json!({ "file": file, "name": name, "version": version, "digest": digest }));
    }
    if output == Output::Json {
        output::object(&json!({ "key_id": id, "public_key": public, "signed": signed }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sign_one(
    file: &Path,
    private: &[u8; 32],
    id: &str,
    owner: Option<&TenantId>,
) -> anyhow::Result<(Described, Signature)> {
    let component = Source::File(file.to_owned()).read(&COMPONENT)?;
    // A person reads it after the file's name, as that of a refused upload.
    let described = inspect(&this_program(), &component).map_err(|error| anyhow!("{} {error}", file.display()))?;
    let Described { digest, name, version, .. } = &described;
    let signature = Statement { digest: *digest, name, version, owner }.sign(private, id)?;
    Ok((described, signature))
}

/// The file with the signature of another.
fn beside(file: &Path) -> PathBuf {
    let mut beside: OsString = file.as_os_str().to_owned();
    beside.push(".sig");
    beside.into()
}

fn generate(path: &Path) -> anyhow::Result<()> {
    let text = format!("{KEY_FILE} {}\n", hexadecimal::encode(&rand::random::<[u8; 32]>()));
    let mut options = std::fs::OpenOptions::new();
    // Never instead of a key that is there, and never for others to read.
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.with_context(|| format!("make the private key {}", path.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| format!("write {}", path.display()))
}

fn private_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let bytes = Source::File(path.to_owned()).read(&KEY)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let digits = text.trim_end().strip_prefix(KEY_FILE).and_then(|rest| rest.strip_prefix(' '));
    let key = digits.and_then(hexadecimal::decode).and_then(|bytes| bytes.try_into().ok());
    // Not what is in it: it may be another secret.
    key.ok_or_else(|| anyhow!("{} is no private key of `witan plugin sign --generate`", path.display()))
}

/// Reads a file with a signature.
pub(super) fn read(path: &Path) -> anyhow::Result<Signature> {
    let limit = Limit {
        field: "--signature",
        bytes: signature::SIGNATURE_FILE_BYTES,
        remedy: "name a file that `witan plugin sign` has written",
    };
    let bytes = Source::File(path.to_owned()).read(&limit)?;
    Signature::parse(&bytes).map_err(|error| anyhow!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release.key");
        generate(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        let key = private_key(&path).unwrap();
        assert!(generate(&path).is_err(), "it is not replaced");
        assert_eq!(private_key(&path).unwrap(), key);
        let text = std::fs::read_to_string(&path).unwrap();
        for wrong in ["", "secret", &text[..text.len() - 3], &text.replace("v1", "v2"), &text.replace(' ', "")] {
            std::fs::write(&path, wrong).unwrap();
            let refused = private_key(&path).unwrap_err().to_string();
            assert!(refused.contains("--generate") && !refused.contains("secret"), "{refused}");
        }
        assert_eq!(beside(Path::new("a/set-union.wasm")), Path::new("a/set-union.wasm.sig"));
    }
}
