//! `cargo xtask fuzz`: replays the corpora of the fuzz targets (tests/fuzz), then tries mutated inputs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::run;

/// Targets that need the kernel only, which is compiled in a minute.
const OF_KERNEL: [&str; 5] = ["record", "pair", "context", "cursor", "reservation"];
/// Targets that need the protocol of storage nodes.
const OF_WIRE: [&str; 1] = ["frame"];
/// Targets that need the whole program.
const OF_HOST: [&str; 4] = ["token", "page-token", "configuration", "command-line"];

/// Seconds that CI, and a person who says nothing else, give each target.
pub const SECONDS: u64 = 60;
/// Memory that a target may address, in KiB: an input of a few kilobytes that needs more is a defect.
const MEMORY_KIB: u64 = 4 << 20;

const EXAMPLES: &str = "Examples:
  cargo xtask fuzz                                 every target: its corpus, then a minute of mutated inputs
  cargo xtask fuzz --target record --seconds 600   one target, for longer
  cargo xtask fuzz --target pair --seed 7          other inputs: a seed decides which are tried, and in which order
  cargo xtask fuzz --target record --input FILE    one input, say one that has failed

Targets: record, pair, context, cursor, reservation (the kernel's, compiled in a minute); frame; token, page-token, configuration,
command-line. An input that breaks a rule is kept in target/fuzz. Once the defect is repaired, move it to tests/fuzz/corpus/<target>.";

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Fuzz this target only
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How long to try mutated inputs, for each target
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u64,
    /// Decides which inputs are tried
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Run the target on this file only
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Write inputs with new outcomes to the corpus, for a new target
    #[arg(long)]
    grow: bool,
}

/// Fuzzes what the arguments ask for.
pub fn fuzz(arguments: &Arguments) -> Result<()> {
    let targets: Vec<&str> = match &arguments.target {
        Some(target) => vec![target],
        None => all().collect(),
    };
    ensure_known(&targets)?;
    run_all(&run::fuzz(features(&targets))?, &targets, arguments)
}

/// Fuzzes every target for the usual time, with a runner that was built.
pub fn every_target(program: &Path) -> Result<()> {
    let usual = Arguments { target: None, seconds: SECONDS, seed: 0, input: None, grow: false };
    run_all(program, &all().collect::<Vec<_>>(), &usual)
}

/// Runs as many targets at once as there are cores.
fn run_all(program: &Path, targets: &[&str], arguments: &Arguments) -> Result<()> {
    let mut failed = Vec::new();
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    for some in targets.chunks(at_once) {
        let running = some.iter().map(|target| Ok((*target, start(program, target, arguments)?)));
        for (target, mut child) in running.collect::<Result<Vec<(&str, Child)>>>()? {
            if !child.wait().with_context(|| format!("wait for {target}"))?.success() {
                failed.push(target);
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "{}: see above; play the input again with: cargo xtask fuzz --target NAME --input FILE",
        failed.join(", ")
    );
    Ok(())
}

fn all() -> impl Iterator<Item = &'static str> {
    OF_KERNEL.into_iter().chain(OF_WIRE).chain(OF_HOST)
}

fn ensure_known(targets: &[&str]) -> Result<()> {
    for target in targets {
        let known = all().any(|known| known == *target);
        ensure!(known, "there is no target {target}; there are: {}", all().collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// The feature of witan-fuzz that these targets need.
fn features(targets: &[&str]) -> Option<&'static str> {
    let any = |of: &[&str]| targets.iter().any(|target| of.contains(target));
    if any(&OF_HOST) {
        return Some("witan-fuzz/host");
    }
    any(&OF_WIRE).then_some("witan-fuzz/wire")
}

/// Starts one target, with bounded memory.
fn start(program: &Path, target: &str, arguments: &Arguments) -> Result<Child> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"")).arg(program);
    command.args([
        "--target",
        target,
        "--seconds",
        &arguments.seconds.to_string(),
        "--seed",
        &arguments.seed.to_string(),
    ]);
    if let Some(input) = &arguments.input {
        command.arg("--input").arg(std::path::absolute(input).context("find the input")?);
    }
    if arguments.grow {
        command.arg("--grow");
    }
    command.stdin(Stdio::null()).spawn().with_context(|| format!("start {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_a_corpus_and_each_corpus_a_target() {
        let folder = run::root().join("tests/fuzz/corpus");
        let corpora = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut corpora: Vec<String> = corpora.collect();
        let mut targets: Vec<&str> = all().collect();
        corpora.sort();
        targets.sort_unstable();
        assert_eq!(corpora, targets);
    }

    #[test]
    fn the_kernel_s_targets_need_nothing_else() {
        assert_eq!(features(&OF_KERNEL), None);
        assert_eq!(features(&["record", "frame"]), Some("witan-fuzz/wire"));
        assert_eq!(features(&["frame", "token"]), Some("witan-fuzz/host"));
        assert!(ensure_known(&["nothing"]).unwrap_err().to_string().contains("there are: record, "));
    }
}
