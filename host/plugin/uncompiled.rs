//! Why a component was not compiled.

use std::time::Duration;

use crate::limit;

/// Why a component has no machine code. The sentence continues the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    /// In wasmtime's words.
    #[error("cannot be compiled: {0}")]
    Compiler(String),
    #[error("took longer than {} s of CPU time to compile; make its functions smaller", .0.as_secs_f32())]
    CpuTime(Duration),
    #[error("took more than {} MiB of memory to compile; make its functions smaller", .0 >> 20)]
    Memory(usize),
    #[error(
        "compiles to {bytes} bytes of machine code; at most {limit} are allowed: make its code, memories or data smaller"
    )]
    Image { bytes: String, limit: usize },
    #[error("crashed the compiler ({0}), which is a defect of the compiler; please report it")]
    Crashed(String),
    /// In wasmtime's words.
    #[error("its machine code cannot be loaded: {0}")]
    Load(String),
    #[error("{0} (remembered: it is compiled again under another version or other limits)")]
    Before(String),
}

/// Why a component has not been compiled, which says nothing about the component: it may be compiled later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNow {
    #[error("{} other plugins are being compiled; try again in a minute", limit::COMPILATIONS)]
    Busy,
    #[error("the same plugin is being compiled; try again in a minute")]
    Same,
    #[error("no process to compile in can be started ({0}); see that this host permits it, then try again")]
    Process(String),
    #[error(
        "the process that compiled the plugin was ended from outside, perhaps because this machine is out of memory; try again"
    )]
    Killed,
    #[error("the plugin was not compiled within {} s: this machine is overloaded; try again later", .0.as_secs())]
    WallTime(Duration),
}

/// What a compilation failed of: the component, or the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Uncompiled {
    #[error(transparent)]
    Refused(#[from] CompileError),
    #[error(transparent)]
    NotNow(#[from] NotNow),
}
