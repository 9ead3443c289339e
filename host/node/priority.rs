//! The priority of threads.

/// How much lower the priority of threads is whose work nobody waits for, as for nice(1): on a processor that others use as well they get a
/// quarter of a share, which keeps up with what clients write, and those that serve wait for them hardly ever. On a processor that is
/// idle they lose nothing.
const NICE: i32 = 5;

/// Lowers the priority of this thread, and of those that it starts, for good. Does nothing where threads have none of their own.
pub fn lower() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the priority of a thread cannot be lowered");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = NICE;
}
