//! The author's kit: a program of its own, `witan-plugin`, which these subcommands become.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use super::super::Global;
use super::super::output::Output;

/// The kit's program.
const PROGRAM: &str = "witan-plugin";

/// Shown below the help of each of its subcommands.
pub const EXAMPLES: &str = "\
A part of the author's kit, whose program `witan-plugin` is looked for beside this one and in PATH. Its own help says more.

Examples:
  witan plugin new --hook conflict-resolver --language rust text-lines
  witan plugin build
  witan plugin test
  witan plugin bench --help";

/// Arguments that the kit understands.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Args {
    /// Options and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub rest: Vec<OsString>,
}

/// Becomes the kit's program; returns only if that fails.
pub fn become_it(global: &Global, subcommand: &str, args: &Args) -> anyhow::Result<std::convert::Infallible> {
    let program = find(std::env::current_exe().ok(), std::env::var_os("PATH").as_deref(), subcommand)?;
    let mut command = Command::new(&program);
    command.arg(subcommand).args(&args.rest);
    if global.output == Output::Json {
        command.args(["--output", "json"]);
    }
    // What was given to this program is for the coordinator that the kit uploads to.
    command.env("WITAN_ENDPOINT", &global.endpoint);
    let files = [
        ("WITAN_CA_FILE", &global.ca_file),
        ("WITAN_CLIENT_CERT_FILE", &global.client_cert_file),
        ("WITAN_CLIENT_KEY_FILE", &global.client_key_file),
        ("WITAN_TOKEN_FILE", &global.token_file),
    ];
    command.envs(files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?))));
    command.envs(global.server_name.iter().map(|name| ("WITAN_SERVER_NAME", name)));
    if global.allow_plaintext_token {
        command.env("WITAN_ALLOW_PLAINTEXT_TOKEN", "true");
    }
    Err(command.exec()).with_context(|| format!("run {}", program.display()))
}

/// The kit's program: beside this one, or in the search path.
fn find(own: Option<PathBuf>, path: Option<&OsStr>, subcommand: &str) -> anyhow::Result<PathBuf> {
    let beside = own.as_deref().and_then(|own| Some(own.parent()?.to_owned()));
    let folders = beside.iter().cloned().chain(path.iter().flat_map(std::env::split_paths));
    let Some(found) = folders.map(|folder| folder.join(PROGRAM)).find(|program| program.is_file()) else {
        let beside = beside.as_ref().map_or("this program's folder".to_owned(), |folder| folder.display().to_string());
        bail!(
            "`witan plugin {subcommand}` is a part of the author's kit, whose program {PROGRAM} is neither in {beside} nor in PATH; \
             put it there, or build it in a checkout of Witan: cargo build --release -p witan-kit"
        );
    };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_beside_this_one_or_in_the_path() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let this = || Some(own.path().join("witan"));
        let path = std::env::join_paths([other.path()]).unwrap();
        let missing = find(this(), Some(&path), "new").unwrap_err().to_string();
        assert!(missing.contains("witan plugin new") && missing.contains("-p witan-kit"), "{missing}");
        assert!(find(None, None, "new").is_err());
        std::fs::write(other.path().join(PROGRAM), "").unwrap();
        assert_eq!(find(this(), Some(&path), "new").unwrap(), other.path().join(PROGRAM));
        std::fs::write(own.path().join(PROGRAM), "").unwrap();
        assert_eq!(find(this(), Some(&path), "new").unwrap(), own.path().join(PROGRAM));
    }
}
