//! Why a change of plugins or bindings was not made: callers branch on the variants, people read the sentences.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use witan_kernel::class::Class;
use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::port::owners::NotOwned;
use witan_kernel::port::{StoreError, TENANT_COMPILATIONS};

use crate::describe::ManifestError;
use crate::instance::LinkError;
use crate::limit;
use crate::probe::ProbeError;
use crate::signature::SignatureError;
use crate::uncompiled::{CompileError, Uncompiled};
use crate::validate::ComponentError;

/// Why a change was not made. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// A field of the request breaks a rule.
    #[error(transparent)]
    Field(#[from] Invalid),
    /// The plugin breaks a rule, or misbehaved when it was probed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such plugin, or no such binding.
    #[error("{0}")]
    NotFound(String),
    /// There is nothing that is tried in this slot.
    #[error("{0}")]
    NoCandidate(String),
    /// Coordinators, named here, have not loaded the plugin, or do not know candidates.
    #[error("{0}")]
    NotReady(String),
    /// The plugin is bound, or kept for a rollback.
    #[error("{0}")]
    InUse(String),
    /// Every plugin of the operator that is kept is bound, kept for a rollback, or in the watched folder.
    #[error(
        "the operator has {} plugins, all of them bound, kept for a rollback, or in the plugin folder; unbind some, or remove files",
        limit::ARTIFACTS
    )]
    Full,
    /// The owner may not have this plugin: its name is taken, or a quota is used up.
    #[error(transparent)]
    NotOwned(#[from] NotOwned),
    /// The tenant does not have the class of limits that the plugin needs.
    #[error(
        "{what} needs class {class}{}, and tenant {tenant} does not have that class; an operator can grant it: witan plugin grant \
         --tenant {tenant} {class}",
        because(.reason)
    )]
    ClassNotGranted {
        /// The plugin, or "the component".
        what: String,
        /// The tenant.
        tenant: TenantId,
        /// The class.
        class: Class,
        /// What of it is beyond the stricter class; empty if that is not known.
        reason: String,
    },
    /// The tenant has had its share of compilations of class interpreted.
    #[error(
        "tenant {tenant} has had {TENANT_COMPILATIONS} components of class {class} compiled within an hour, the most that it may; the \
         next one may be in {} minutes",
        .wait.as_secs().div_ceil(60)
    )]
    Rate {
        /// The tenant.
        tenant: TenantId,
        /// The class.
        class: Class,
        /// When the next compilation may begin, from now.
        wait: Duration,
    },
    /// The plugin is not signed as it must be.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Too many changes are waiting; try again.
    #[error("too many plugin changes are waiting; try again")]
    Busy,
    /// The machine is too busy to compile or to probe the plugin now, which says nothing about the plugin; try again.
    #[error("{0}")]
    HostBusy(String),
    /// The plugin is loaded after the start of this host.
    #[error("is still being loaded since this coordinator was started; it answers in a moment")]
    Late,
    /// The store of plugins and bindings failed. The previous binding stays in force.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host's own disk, threads or memory failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A reason that continues "it", in brackets.
fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" (it {reason})") }
}

impl PluginError {
    /// True when the same request may succeed later, unchanged.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Full
                | Self::Busy
                | Self::HostBusy(_)
                | Self::Late
                | Self::Rate { .. }
                | Self::Store(_)
                | Self::Host(_)
        )
    }

    /// True when the plugin was not even tried.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::HostBusy(_) | Self::Late)
    }

    /// A binding was changed by others as often as it was read.
    pub(crate) fn keeps_changing() -> Self {
        Self::HostBusy("others keep changing the binding; look at it and try again".into())
    }

    pub(crate) fn uploads_wait() -> Self {
        Self::HostBusy("other uploads are being compiled; try again in a minute, or with a longer deadline".into())
    }

    /// A name may mean a file that has not been looked at yet.
    pub(crate) fn not_scanned() -> Self {
        let what = "the plugin folder has not been scanned yet since this coordinator started";
        Self::HostBusy(format!("{what}; try again in a minute"))
    }

    pub(crate) fn uncompiled(error: Uncompiled) -> Self {
        match error {
            Uncompiled::Refused(error) => Self::refused(error),
            Uncompiled::NotNow(why) => Self::HostBusy(why.to_string()),
        }
    }

    /// A plugin, as name@version, has not passed its probe.
    pub(crate) fn unprobed(plugin: String, error: ProbeError) -> Self {
        if error.is_wall_time() {
            return Self::HostBusy(format!("{plugin}: {error}; this machine is overloaded: try again later"));
        }
        Self::refused(Why::Probe { plugin, error })
    }

    pub(crate) fn refused(why: impl Into<Why>) -> Self {
        Self::Refused(Refusal(Box::new(why.into())))
    }
}

/// Why a plugin is not accepted, with a sentence for its author. The sentence continues the plugin's name: "is empty".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct Refusal(Box<Why>);

/// Where on its way in a plugin was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Why {
    #[error(transparent)]
    Component(#[from] ComponentError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{plugin} is refused: {error}")]
    Probe { plugin: String, error: ProbeError },
}

/// What failed of the plugin host itself.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The WebAssembly engine cannot be made with this host's settings.
    #[error("make the engine: {0}")]
    Engine(String),
    /// A thread cannot be started.
    #[error("start {what}: {error}")]
    Thread {
        /// The thread's purpose.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// A file or folder cannot be created, read or written.
    #[error("{action} {}: {error}", path.display())]
    File {
        /// What was to be done, such as "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// A component on disk is not the one that was written there.
    #[error("{} is damaged; stage the plugin again", .0.display())]
    Damaged(PathBuf),
    /// The change panicked: a defect.
    #[error("the change panicked; please report it")]
    Panicked,
}

impl HostError {
    /// For `map_err`: what was to be done, with which file.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { action, path, error }
    }

    /// For `map_err`: which thread was to be started.
    pub(crate) fn thread(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Thread { what, error }
    }
}
