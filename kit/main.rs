//! The binary `witan-plugin`, which `witan plugin` runs for what a plugin's author does.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: components are compiled in processes of this program that do nothing else.
    witan_plugin::compile_if_asked().unwrap_or_else(witan_kit::main)
}
