//! What a plugin may ask of its host. On other targets than WebAssembly, both functions print to standard error.

/// How much a message matters to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// For the plugin's author.
    Debug,
    /// Worth knowing.
    Info,
    /// The plugin has acted.
    Warn,
    /// Someone must act.
    Error,
}

/// Writes one line to the coordinator's log: at most 512 bytes, and a few lines a second; more is dropped and counted.
pub fn log(severity: Severity, message: &str) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::consistency_policy::witan::plugin::host;
        let severity = match severity {
            Severity::Debug => host::Severity::Debug,
            Severity::Info => host::Severity::Info,
            Severity::Warn => host::Severity::Warn,
            Severity::Error => host::Severity::Error,
        };
        host::log(severity, message);
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{severity:?}: {message}");
}

/// Sets a gauge under the plugin's name: at most 64 bytes of name, and a few names; more is dropped and counted.
pub fn metric(name: &str, value: f64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::consistency_policy::witan::plugin::host::metric(name, value);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{name} = {value}");
}
