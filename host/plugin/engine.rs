//! The engine in which guests run, and the clock by which they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wasmtime::{Config, Engine, EngineWeak};

use crate::limit;

/// Time between two ticks: the precision of a call's deadline.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// The settings under which guests are compiled and run. Both engines must use the same.
fn config() -> Config {
    let mut config = Config::new();
    // Epochs only: in a tight loop they cost about 10 %, fuel more, and both together five times as much.
    config.epoch_interruption(true);
    // No async functions in components, so that a call costs half as much.
    config.concurrency_support(false);
    config.max_wasm_stack(limit::STACK_BYTES);
    // Every coordinator must reach the same verdict, although processors differ in the bits of a NaN.
    config.cranelift_nan_canonicalization(true);
    config.wasm_relaxed_simd(false);
    config.wasm_memory64(false);
    config.wasm_tail_call(false);
    config.generate_address_map(false);
    config.native_unwind_info(true);
    config
}

/// The features of WebAssembly that a component may use.
pub(crate) fn features() -> wasmparser::WasmFeatures {
    use wasmparser::WasmFeatures as F;
    F::MUTABLE_GLOBAL
        | F::SATURATING_FLOAT_TO_INT
        | F::SIGN_EXTENSION
        | F::REFERENCE_TYPES
        | F::GC_TYPES
        | F::MULTI_VALUE
        | F::BULK_MEMORY
        | F::CALL_INDIRECT_OVERLONG
        | F::BULK_MEMORY_OPT
        | F::SIMD
        | F::FLOATS
        | F::EXTENDED_CONST
        | F::MULTI_MEMORY
        | F::COMPONENT_MODEL
}

/// The engine that runs guests. It cannot compile: a compiler accumulates state in its engine, and this one is never replaced.
pub(crate) fn runtime() -> Result<Engine, wasmtime::Error> {
    let mut config = config();
    config.enable_compiler(false);
    Engine::new(&config)
}

/// An engine that compiles one component and is then dropped.
pub(crate) fn compiler() -> Result<Engine, wasmtime::Error> {
    let mut config = config();
    // One thread, so that the others can serve requests.
    config.parallel_compilation(false);
    Engine::new(&config)
}

/// Milliseconds since the host started, as its ticker counts them: the clock of deadlines, windows and breakers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticks(Arc<AtomicU64>);

impl Ticks {
    /// Milliseconds since the host started.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// Starts the thread that advances the engine's epoch and the clock. It ends when the engine has been dropped.
pub(crate) fn start_ticking(engine: &Engine) -> std::io::Result<Ticks> {
    let ticks = Ticks::default();
    let (clock, engine) = (ticks.0.clone(), engine.weak());
    thread::Builder::new().name("witan-epoch".into()).spawn(move || tick(&engine, &clock))?;
    Ok(ticks)
}

fn tick(engine: &EngineWeak, clock: &AtomicU64) {
    let start = Instant::now();
    loop {
        thread::sleep(TICK);
        let Some(engine) = engine.upgrade() else { return };
        clock.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        engine.increment_epoch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_engine_compiles_the_other_runs() {
        let image = compiler().unwrap().precompile_component(b"\0asm\x0d\0\x01\0").unwrap();
        assert!(crate::compile::load(&runtime().unwrap(), &image).is_ok());
    }

    #[test]
    fn the_clock_runs() {
        let engine = runtime().unwrap();
        let ticks = start_ticking(&engine).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while ticks.now() < 3 && Instant::now() < end {
            thread::yield_now();
        }
        assert!(ticks.now() >= 3);
    }
}
