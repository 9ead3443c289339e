//! The functions that a plugin can call on its host. On targets other than WebAssembly, they print to standard error or know nothing.

/// How much a message matters to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// For the plugin's author.
    Debug,
    /// Worth knowing.
    Info,
    /// The plugin handled a problem.
    Warn,
    /// An operator needs to act.
    Error,
}

/// Writes one line to the coordinator's log. A line is cut to 512 bytes; beyond ten lines a second they are dropped and counted.
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

/// Sets one of the plugin's gauges. Names longer than 64 bytes, and gauges beyond the sixteenth, are dropped.
pub fn metric(name: &str, value: f64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::consistency_policy::witan::plugin::host::metric(name, value);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{name} = {value}");
}

/// What is known of the tenant that this plugin serves: the same at every coordinator, and for ever. `tenant` is its id; it is absent while
/// the plugin is staged or probed.
pub fn tenant() -> crate::Attributes {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::consistency_policy::witan::plugin::host::tenant();
    #[cfg(not(target_arch = "wasm32"))]
    crate::Attributes::new()
}
