//! The binary `witan`: everything is in [`witan::cli`], which is a part of the library so that tests and benchmarks use it too.

use std::process::ExitCode;

/// Requests allocate and free small buffers on several threads all the time; mimalloc is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    witan::cli::main()
}
