//! `cargo xtask sim`: plays the deterministic simulation (tests/sim), whose options are environment variables of its test program.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{self, cargo, count_tests};

/// Where the deliberate faults are listed, below the repository's root.
const FAULTS: &str = "host/kernel/fault.rs";

/// The test that plays seeds.
const PLAYS: &[&str] = &["no_seed_breaks_a_promise"];
/// The tests that search for a seed on which each deliberate fault shows. Each knows which faults are its own.
const SEARCHES: &[&str] =
    &["faults::search_for_every_deliberate_fault", "names::search_for_every_deliberate_fault_of_names"];

const EXAMPLES: &str = "Examples:
  cargo xtask sim                                  play the usual number of seeds
  cargo xtask sim --seeds 5000                     play more, for a change of the protocol
  cargo xtask sim --seeds 5000 --scenario crashes  play those that follow one scenario
  cargo xtask sim --seed links:3                   play one seed, say a failing one, and print all of it
  cargo xtask sim --fault QuorumOffByOne           break a rule, and search for a seed that shows it
  cargo xtask sim --seed 7 --fault QuorumOffByOne  play one seed with it; fails if the seed shows it
  cargo xtask sim --faults                         search for a seed for every deliberate fault

A seed decides everything: scenario, network, disks, clocks, crashes and clients. The same seed goes the same way on every machine.
tests/sim/scenario.rs describes the scenarios, host/kernel/fault.rs the faults.";

/// Options of `cargo xtask sim`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Play this seed only, a number or a scenario's name and a number in it, and print all that happens
    #[arg(long, value_name = "N|NAME:N", conflicts_with_all = ["seeds", "scenario", "faults"])]
    seed: Option<String>,
    /// Play seeds 0 to N-1 [default: what tests/sim/main.rs says]
    #[arg(long, value_name = "N", conflicts_with_all = ["fault", "faults"])]
    seeds: Option<u64>,
    /// Break this rule of the protocol; an unknown name lists all
    #[arg(long, value_name = "NAME", conflicts_with = "faults")]
    fault: Option<String>,
    /// Play only seeds that follow this scenario
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Search for a seed that shows each deliberate fault
    #[arg(long)]
    faults: bool,
}

/// Plays what the arguments ask for.
pub fn sim(arguments: &Arguments) -> Result<()> {
    if let Some(fault) = &arguments.fault {
        ensure_fault(fault)?;
    }
    let tally = count_tests(&mut command(arguments))?;
    ensure!(
        tally.passed + tally.failed > 0,
        "tests/sim has none of the tests {:?}: xtask/src/sim.rs names them",
        tests(arguments)
    );
    if tally.failed > 0 {
        bail!("{}", advice(arguments));
    }
    Ok(())
}

/// Plays seeds 0 to `count` - 1.
pub fn seeds(count: u64) -> Result<()> {
    sim(&Arguments { seeds: Some(count), ..Arguments::default() })
}

fn tests(arguments: &Arguments) -> &'static [&'static str] {
    let searches = arguments.faults || arguments.fault.is_some() && arguments.seed.is_none();
    if searches { SEARCHES } else { PLAYS }
}

fn command(arguments: &Arguments) -> Command {
    let mut command =
        cargo(["test", "-p", "witan-sim", "--test", "sim", "--", "--nocapture", "--include-ignored", "--exact"]);
    command.args(tests(arguments));
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    for (name, value) in [
        ("WITAN_SIM_SEED", arguments.seed.clone()),
        ("WITAN_SIM_SEEDS", number(arguments.seeds)),
        ("WITAN_SIM_FAULT", arguments.fault.clone()),
        ("WITAN_SIM_SCENARIO", arguments.scenario.clone()),
    ] {
        // What is set in the user's shell would contradict the arguments.
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn advice(arguments: &Arguments) -> String {
    match (&arguments.seed, &arguments.fault) {
        (Some(seed), Some(fault)) => format!("seed {seed} shows {fault}: see what it printed above"),
        (Some(seed), None) => format!("seed {seed} breaks a promise: see what it printed above"),
        (None, Some(_)) => "no seed shows the fault: extend tests/sim until one does".to_owned(),
        (None, None) if arguments.faults => {
            "faults that no seed shows are listed above: extend tests/sim until one does".to_owned()
        }
        (None, None) => {
            "seeds that break a promise are listed above; play one of them with: cargo xtask sim --seed N".to_owned()
        }
    }
}

fn ensure_fault(name: &str) -> Result<()> {
    let text = fs::read_to_string(run::root().join(FAULTS)).with_context(|| format!("read {FAULTS}"))?;
    let faults = faults(&text);
    ensure!(!faults.is_empty(), "{FAULTS} lists no faults where xtask/src/sim.rs looks for them");
    let known = faults.iter().any(|(fault, _)| fault == name);
    let width = faults.iter().map(|(fault, _)| fault.len()).max().unwrap_or_default();
    let lines = faults.iter().map(|(fault, what)| format!("\n  {fault:width$}  {what}"));
    ensure!(known, "there is no fault {name}; there are:{}", lines.collect::<String>());
    Ok(())
}

/// The variants of `enum Fault`, each with its documentation.
fn faults(text: &str) -> Vec<(String, String)> {
    let body = text.split_once("pub enum Fault {").map_or("", |(_, body)| body);
    let mut faults = Vec::new();
    let mut what: Vec<&str> = Vec::new();
    for line in body.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(part) = line.strip_prefix("///") {
            what.push(part.trim());
        } else if let Some(fault) = line.strip_suffix(',') {
            faults.push((fault.to_owned(), what.join(" ")));
            what.clear();
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_has_faults() {
        let text = fs::read_to_string(run::root().join(FAULTS)).unwrap();
        let faults = faults(&text);
        assert!(faults.len() > 10, "{faults:?}");
        for (fault, what) in &faults {
            assert!(fault.chars().all(char::is_alphanumeric) && what.ends_with('.'), "{fault}: {what}");
        }
    }

    #[test]
    fn an_unknown_fault_is_answered_with_those_that_exist() {
        let error = ensure_fault("Nothing").unwrap_err().to_string();
        assert!(error.contains("there is no fault Nothing") && error.contains("\n  QuorumOffByOne "), "{error}");
        assert!(ensure_fault("QuorumOffByOne").is_ok());
    }

    #[test]
    fn arguments_choose_the_test_and_its_environment() {
        let asked =
            Arguments { fault: Some("X".to_owned()), scenario: Some("links".to_owned()), ..Arguments::default() };
        let command = command(&asked);
        let given: Vec<_> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        assert!(given.ends_with(SEARCHES), "{given:?}");
        let set: Vec<_> = command.get_envs().filter(|(name, _)| name.to_string_lossy().starts_with("WITAN")).collect();
        let set: Vec<_> = set.iter().filter_map(|(name, value)| Some((name.to_str()?, (*value)?.to_str()?))).collect();
        assert_eq!(set, [("WITAN_SIM_FAULT", "X"), ("WITAN_SIM_SCENARIO", "links")]);
        assert_eq!(tests(&Arguments { seed: Some("links:3".to_owned()), ..asked }), PLAYS);
    }
}
