//! What is fuzzed.

mod context;
mod pair;
mod record;
mod stored;

#[cfg(feature = "wire")]
mod frame;

#[cfg(feature = "host")]
mod command_line;
#[cfg(feature = "host")]
mod configuration;
#[cfg(feature = "host")]
mod token;

use crate::Target;

/// Every target that is compiled in.
pub fn all() -> Vec<Target> {
    let mut all = Vec::new();
    all.extend([
        Target { name: "record", run: record::run, words: record::WORDS },
        Target { name: "pair", run: pair::run, words: record::WORDS },
        Target { name: "context", run: context::run, words: record::WORDS },
        Target { name: "cursor", run: stored::cursor, words: &[] },
        Target { name: "reservation", run: stored::reservation, words: &[] },
    ]);
    #[cfg(feature = "wire")]
    all.extend([Target { name: "frame", run: frame::run, words: frame::WORDS }]);
    #[cfg(feature = "host")]
    all.extend([
        Target { name: "token", run: token::run, words: token::WORDS },
        Target { name: "page-token", run: token::page, words: &[] },
        Target { name: "configuration", run: configuration::run, words: configuration::WORDS },
        Target { name: "command-line", run: command_line::run, words: command_line::WORDS },
    ]);
    all
}
