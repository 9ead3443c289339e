//! The binary `witan`. The implementation is in [`witan::cli`], in the library, so that tests and benchmarks can use it too.

use std::process::ExitCode;

/// Requests allocate and free many small buffers on several threads, a workload that mimalloc is designed for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    witan::cli::main()
}
