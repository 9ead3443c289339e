//! `test`: a component on its cases, and its probe, which tries a resolver's laws.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::json;
use witan_kernel::hook::{Hook, PolicyAnswer, ResolverQuestion, Verdict};
use witan_plugin::trial::{Configured, Trial, Unanswered};

use crate::case::{self, Asked, Case, Decision, Expected, Expects, Outcome};
use crate::output::{self, Output};
use crate::subject::{self, Subject};

/// Most siblings of which every order is tried: 120 orders. Of more, every rotation is, forwards and backwards.
const ORDERED: usize = 5;
/// Values of cases on which a resolver's laws are tried, besides its own samples: every pair of them is a few calls.
const VALUES: usize = 24;
/// Bytes of a value that are shown.
const SHOWN_BYTES: usize = 200;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to test.
    #[command(flatten)]
    pub subject: subject::Named,
    /// The folder with the cases [default: cases, in the project's folder]
    #[arg(long, value_name = "FOLDER")]
    pub cases: Option<PathBuf>,
}

/// What became of one case, or of the probe: `Err` has what is wrong.
struct Outcomes(Vec<(String, Result<(), String>)>);

/// Tests a component and prints what failed.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let subject = Subject::read(&args.subject)?;
    let trial = subject.prepare()?;
    let folder = args.subject.cases(args.cases.as_deref());
    let cases = case::read_all(&folder, trial.hook())?;
    ensure!(!cases.is_empty(), "{} has no case: write one, such as those of a new project", folder.display());
    let mut outcomes: Vec<(String, Result<(), String>)> =
        cases.iter().map(|case| (case.name.clone(), try_case(&trial, case))).collect();
    outcomes.extend(probes(&trial, &cases));
    let outcomes = Outcomes(outcomes);
    match output {
        Output::Json => output::object(&outcomes.shown(&trial))?,
        Output::Text => outcomes.print(&trial, &subject.path)?,
    }
    Ok(if outcomes.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Outcomes {
    fn failed(&self) -> usize {
        self.0.iter().filter(|(_, outcome)| outcome.is_err()).count()
    }

    fn print(&self, trial: &Trial, path: &Path) -> Result<()> {
        let (name, version) = (trial.name(), trial.version());
        output::line(&format!("{}: {name}@{version}, {}", path.display(), trial.hook()))?;
        for (name, outcome) in &self.0 {
            match outcome {
                Ok(()) => output::line(&format!("  ok      {name}"))?,
                Err(why) => output::line(&format!("  FAILED  {name}: {why}"))?,
            }
        }
        let failed = self.failed();
        output::line(&format!("{} passed, {failed} failed", self.0.len() - failed))?;
        Ok(())
    }

    fn shown(&self, trial: &Trial) -> serde_json::Value {
        let each = self.0.iter().map(|(name, outcome)| json!({ "name": name, "failed": outcome.as_ref().err() }));
        json!({
            "name": trial.name(),
            "version": trial.version(),
            "hook": trial.hook().as_str(),
            "passed": self.0.len() - self.failed(),
            "failed": self.failed(),
            "cases": each.collect::<Vec<_>>(),
        })
    }
}

/// Probes the component with each configuration that cases use.
fn probes(trial: &Trial, cases: &[Case]) -> Vec<(String, Result<(), String>)> {
    let accepted = cases.iter().filter(|case| !matches!(case.expects, Expects::Refused(_)));
    let mut configurations: BTreeSet<&[u8]> = accepted.map(|case| case.configuration.as_ref()).collect();
    if configurations.is_empty() {
        configurations.insert(b"");
    }
    let values: BTreeSet<&Bytes> = cases.iter().flat_map(Case::values).collect();
    let values: Vec<Bytes> = values.into_iter().take(VALUES).cloned().collect();
    let what = match trial.hook() {
        Hook::ConflictResolver => format!("laws, on {} values of the cases and on the probe's own", values.len()),
        Hook::ConsistencyPolicy | Hook::RoutingHook => "probe".to_owned(),
    };
    let probe = |configuration: &[u8]| trial.probe(configuration, &values).map_err(|error| error.to_string());
    let named = |configuration: &[u8]| match configuration {
        [] => what.clone(),
        other => format!("{what}, with the configuration {}", shown(other)),
    };
    configurations.into_iter().map(|configuration| (named(configuration), probe(configuration))).collect()
}

/// Tries one case; `Err` says what came of it instead.
fn try_case(trial: &Trial, case: &Case) -> Result<(), String> {
    let configured = trial.configured(&case.configuration);
    if let Expects::Refused(part) = &case.expects {
        return match configured {
            Ok(_) => Err("accepts the configuration, which it has to refuse".to_owned()),
            Err(Unanswered::Declined(why)) if why.contains(part) => Ok(()),
            Err(why) => Err(format!("expected an issue that contains {part:?}; the plugin {why}")),
        };
    }
    let mut plugin = configured.map_err(|why| why.to_string())?;
    match &case.expects {
        Expects::Refused(_) => Ok(()),
        Expects::Verdict(question, expected) => try_orders(&mut plugin, question, expected),
        Expects::Decision(asked, expected) => decide(&mut plugin, asked, expected),
        Expects::Partition(key, expected) => {
            compare(plugin.partition_key(key), expected, |a, b| a == b, |key| shown(key))
        }
        Expects::Order(key, replicas, expected) => {
            compare(plugin.prefer(key, replicas), expected, |a, b| a == b, |order| format!("{order:?}"))
        }
    }
}

/// Compares an answer with what is expected.
fn compare<A, E>(
    answer: Result<A, Unanswered>,
    expected: &Expected<E>,
    agree: impl Fn(&A, &E) -> bool,
    show: impl Fn(&A) -> String,
) -> Result<(), String>
where
    E: std::fmt::Debug,
{
    match (answer, expected) {
        (Ok(answer), Expected::Answer(wanted)) if agree(&answer, wanted) => Ok(()),
        (Ok(answer), Expected::Answer(wanted)) => Err(format!("expected {wanted:?}, answered {}", show(&answer))),
        (Ok(answer), Expected::Error(error)) => Err(format!("expected the error {error}, answered {}", show(&answer))),
        (Err(Unanswered::Declined(why)), Expected::Error(error)) if why.ends_with(&format!("({error})")) => Ok(()),
        (Err(why), Expected::Answer(wanted)) => Err(format!("expected {wanted:?}, but it {why}")),
        (Err(why), Expected::Error(error)) => Err(format!("expected the error {error}, but it {why}")),
    }
}

fn decide(plugin: &mut Configured, asked: &Asked, expected: &Expected<Decision>) -> Result<(), String> {
    let agree = |answer: &PolicyAnswer, wanted: &Decision| {
        wanted.required.is_none_or(|it| it == answer.required)
            && wanted.deadline_ms.is_none_or(|it| it == answer.deadline_ms)
            && wanted.hedge_after_us.is_none_or(|it| it == answer.hedge_after_us)
            && wanted.shortfall.is_none_or(|it| it == answer.shortfall)
    };
    compare(plugin.decide(&asked.question()), expected, agree, |answer| format!("{answer:?}"))
}

/// Asks a resolver about the same siblings in every order, which must not matter.
fn try_orders(
    plugin: &mut Configured,
    question: &ResolverQuestion,
    expected: &Expected<Outcome>,
) -> Result<(), String> {
    for order in orders(question.siblings.len()) {
        let siblings = order.iter().map(|at| question.siblings[*at].clone()).collect();
        let asked = ResolverQuestion { key: question.key.clone(), siblings };
        let outcome = plugin.resolve(&asked).map(|verdict| match verdict {
            Verdict::Pick(at) => asked.siblings.get(at).map(|sibling| sibling.value.clone()),
            Verdict::Merged(value) => Some(value),
            Verdict::KeepAll => None,
        });
        let agree = |found: &Option<Bytes>, wanted: &Outcome| match wanted {
            Outcome::Value(value) => found.as_ref() == Some(value),
            Outcome::KeepAll => found.is_none(),
        };
        let show = |found: &Option<Bytes>| found.as_ref().map_or("keep-all".to_owned(), |value| shown(value));
        compare(outcome, expected, agree, show).map_err(|why| match order.is_sorted() {
            true => why,
            false => format!("with the siblings in the order {order:?}: {why}"),
        })?;
    }
    Ok(())
}

/// Orders of the first `n` numbers, the usual one first.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n <= ORDERED {
        return permutations(n);
    }
    let rotated = |by: usize| (0..n).map(move |at| (at + by) % n);
    (0..n).flat_map(|by| [rotated(by).collect(), rotated(by).rev().collect()]).collect()
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    (0..n).fold(vec![Vec::new()], |shorter, next| {
        // The new number at the end first, so that the usual order stays the first.
        shorter.iter().flat_map(|order| (0..=next).rev().map(|at| inserted(order, at, next))).collect()
    })
}

fn inserted(order: &[usize], at: usize, number: usize) -> Vec<usize> {
    let mut order = order.to_vec();
    order.insert(at, number);
    order
}

/// Bytes for people: as Rust spells a string of bytes, cut off.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let more = if cut.len() < bytes.len() { format!("... ({} bytes)", bytes.len()) } else { String::new() };
    format!("b\"{}\"{more}", cut.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_a_few_is_tried_and_the_usual_one_first() {
        for (n, count) in [(1, 1), (2, 2), (3, 6), (5, 120), (6, 12), (40, 80)] {
            let orders = orders(n);
            assert_eq!(orders.len(), count);
            assert!(orders[0].is_sorted());
            let different: BTreeSet<&Vec<usize>> = orders.iter().collect();
            assert_eq!(different.len(), count);
            for order in &orders {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn values_are_shown_as_text_and_cut() {
        assert_eq!(shown(b"a\n\x1b"), "b\"a\\n\\x1b\"");
        assert!(shown(&[b'a'; 1000]).ends_with("... (1000 bytes)"));
    }
}
