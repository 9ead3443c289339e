//! The program that compiles in the tests of this crate: the same entry as that of `witan`.

use std::process::ExitCode;

fn main() -> ExitCode {
    witan_plugin::compile_if_asked().unwrap_or(ExitCode::from(2))
}
