//! `bench`: how long a warm call takes, and what an instance costs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use witan_plugin::trial::{Configured, Trial, Unanswered};

use crate::case::{self, Case, Expects};
use crate::output::{self, Output, grouped};
use crate::subject::{self, Subject};

/// Calls before the first that counts: by then the plugin has allocated what it works with.
const WARM_UP: usize = 50;
/// Most calls of one case that are measured: enough for a 99th percentile, and a bound on the memory of their durations.
const CALLS: usize = 1_000_000;
/// Instances that are started to find out what that takes.
const STARTS: usize = 50;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[command(flatten)]
    pub subject: subject::Named,
    /// The folder with the cases [default: cases, in the project's folder]
    #[arg(long, value_name = "FOLDER")]
    pub cases: Option<PathBuf>,
    /// Seconds for each case
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
}

/// Durations of calls.
struct Measured {
    name: String,
    calls: usize,
    p50: Duration,
    p99: Duration,
    most: Duration,
}

impl Measured {
    fn of(name: &str, mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |permille: usize| took.get((took.len() * permille / 1000).min(took.len().saturating_sub(1)));
        let at = |permille: usize| at(permille).copied().unwrap_or_default();
        Self { name: name.to_owned(), calls: took.len(), p50: at(500), p99: at(990), most: at(1000) }
    }
}

/// Measures a component and prints a table.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let subject = Subject::read(&args.subject)?;
    let trial = subject.prepare()?;
    let folder = args.subject.cases(args.cases.as_deref());
    let cases = case::read_all(&folder, trial.hook())?;
    let cases: Vec<&Case> = cases.iter().filter(|case| !matches!(case.expects, Expects::Refused(_))).collect();
    let first = cases.first().with_context(|| format!("{} has no case that asks something", folder.display()))?;
    let start = starts(&trial, first)?;
    let each = Duration::from_secs(args.seconds);
    let measured = cases.iter().map(|case| calls(&trial, case, each)).collect::<Result<Vec<_>>>()?;
    match output {
        Output::Json => output::object(&json!({
            "name": trial.name(),
            "version": trial.version(),
            "compile_ns": nanos(trial.compile_time()),
            "machine_code_bytes": trial.image_bytes(),
            "start": shown(&start.0),
            "instance_bytes": start.1,
            "cases": measured.iter().map(shown).collect::<Vec<_>>(),
        }))?,
        Output::Text => {
            let head = ["", "calls", "p50", "p99", "most"];
            output::line(&row(head.map(str::to_owned)))?;
            for it in std::iter::once(&start.0).chain(&measured) {
                let calls = grouped(it.calls as u64);
                output::line(&row([it.name.clone(), calls, time(it.p50), time(it.p99), time(it.most)]))?;
            }
            let (memory, image) = (grouped(start.1 as u64), grouped(trial.image_bytes() as u64));
            output::line(&format!("An instance has {memory} bytes of memory; {image} bytes of machine code."))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row([name, calls, p50, p99, most]: [String; 5]) -> String {
    format!("{name:<32} {calls:>10} {p50:>10} {p99:>10} {most:>10}")
}

fn shown(it: &Measured) -> serde_json::Value {
    let Measured { name, calls, p50, p99, most } = it;
    json!({ "name": name, "calls": calls, "p50_ns": nanos(*p50), "p99_ns": nanos(*p99), "max_ns": nanos(*most) })
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// A duration for people.
fn time(duration: Duration) -> String {
    match nanos(duration) {
        nanos @ 0..10_000 => format!("{:.2} us", nanos as f64 / 1e3),
        nanos @ 10_000..1_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        nanos => format!("{:.2} ms", nanos as f64 / 1e6),
    }
}

/// Starts instances; returns how long that took, and the bytes of one that has answered.
fn starts(trial: &Trial, case: &Case) -> Result<(Measured, usize)> {
    let mut plugin = configured(trial, case)?;
    let mut took = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let began = Instant::now();
        plugin.restart().map_err(|why| anyhow::anyhow!("an instance {why}"))?;
        took.push(began.elapsed());
    }
    // What it does not answer has filled its memory all the same.
    _ = ask(&mut plugin, case);
    Ok((Measured::of("(start an instance)", took), plugin.memory_bytes()))
}

/// Asks one case's question again and again.
fn calls(trial: &Trial, case: &Case, each: Duration) -> Result<Measured> {
    let mut plugin = configured(trial, case)?;
    for _ in 0..WARM_UP {
        if let Err(Unanswered::Broken(why)) = ask(&mut plugin, case) {
            anyhow::bail!("{}: it {why}", case.name);
        }
    }
    let (until, mut took) = (Instant::now() + each, Vec::new());
    while took.len() < CALLS && Instant::now() < until {
        let began = Instant::now();
        let answer = ask(&mut plugin, case);
        took.push(began.elapsed());
        ensure!(!matches!(answer, Err(Unanswered::Broken(_))), "{}: it fails now and then: {answer:?}", case.name);
    }
    Ok(Measured::of(&case.name, took))
}

fn configured(trial: &Trial, case: &Case) -> Result<Configured> {
    trial.configured(&case.configuration).map_err(|why| anyhow::anyhow!("{}: it {why}", case.name))
}

/// Asks what a case asks. Its answer is `test`'s business.
fn ask(plugin: &mut Configured, case: &Case) -> Result<(), Unanswered> {
    match &case.expects {
        Expects::Refused(_) => Ok(()),
        Expects::Verdict(question, _) => plugin.resolve(question).map(drop),
        Expects::Decision(asked, _) => plugin.decide(&asked.question()).map(drop),
        Expects::Partition(key, _) => plugin.partition_key(key).map(drop),
        Expects::Order(key, replicas, _) => plugin.prefer(key, replicas).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_durations() {
        let took = (1..=1000).rev().map(Duration::from_micros).collect();
        let it = Measured::of("x", took);
        assert_eq!(
            (it.calls, it.p50, it.p99, it.most),
            (1000, Duration::from_micros(501), Duration::from_micros(991), Duration::from_micros(1000))
        );
        assert_eq!(Measured::of("x", Vec::new()).most, Duration::ZERO);
    }

    #[test]
    fn durations_are_readable() {
        let text = [130, 56_000, 2_340_000].map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(text, ["0.13 us", "56.0 us", "2.34 ms"]);
    }
}
