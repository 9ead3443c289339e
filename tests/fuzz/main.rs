//! The runner, which `cargo xtask fuzz` builds and starts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use witan_fuzz::run::{Options, input, run};
use witan_fuzz::{Target, targets};

const USAGE: &str = "usage: fuzz --target NAME [--seconds N] [--seed N] [--grow] [--input FILE]";

/// The command line.
struct Arguments {
    target: Target,
    input: Option<PathBuf>,
    options: Options,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(Arguments { target, input: file, options }) = read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match file {
        Some(file) => {
            input(&target, &file).map(|seen| println!("{}: no rule is broken ({:016x})", target.name, seen.0))
        }
        None => run(&target, &options).map(|done| {
            let (name, seed) = (target.name, options.seed);
            println!(
                "{name}: {} of the corpus, {} mutated (seed {seed}), {} outcomes",
                done.replayed, done.tried, done.outcomes
            );
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{}: {failed}", target.name);
            ExitCode::FAILURE
        }
    }
}

fn read(arguments: &[String]) -> Option<Arguments> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (mut target, mut file) = (None, None);
    let mut options = Options {
        time: Duration::from_secs(60),
        seed: 0,
        corpora: here.join("corpus"),
        found: here.join("../../target/fuzz"),
        grow: false,
    };
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        match name.as_str() {
            "--grow" => options.grow = true,
            "--target" => target = Some(rest.next()?),
            "--input" => file = Some(PathBuf::from(rest.next()?)),
            "--seed" => options.seed = rest.next()?.parse().ok()?,
            "--seconds" => options.time = Duration::from_secs(rest.next()?.parse().ok()?),
            _ => return None,
        }
    }
    let target = targets::all().into_iter().find(|known| Some(known.name) == target.map(String::as_str))?;
    Some(Arguments { target, input: file, options })
}
