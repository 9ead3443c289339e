//! What a command was doing when it failed: a hint names only options that the command has, and ways to find out that fit.

/// What was asked of the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// To show something.
    Query,
    /// To read a key.
    Read,
    /// To write or delete a key; `named` with an idempotency key of the user's.
    Change {
        /// Whether the user gave an idempotency key.
        named: bool,
    },
    /// To add or remove a storage node.
    Node,
    /// To create, change or delete a tenant.
    Tenant,
    /// To cancel a migration.
    Migration,
    /// To give up what moves have left on a node.
    Leftovers,
    /// To declare that the cluster was restored.
    Restore,
    /// To upload a plugin.
    Push,
    /// To bind a plugin, to roll a binding back, or to remove it.
    Bind,
    /// To remove a plugin.
    RemovePlugin,
    /// To add or remove a signing key.
    SigningKey,
    /// To grant a class of limits to a tenant, or to take it.
    PluginClass,
    /// To create or revoke a token.
    Token,
}

impl Deed {
    /// Whether something would be different afterwards.
    pub fn is_change(self) -> bool {
        !matches!(self, Self::Query | Self::Read)
    }

    /// Whether it has the option `--consistency`.
    pub fn has_level(self) -> bool {
        matches!(self, Self::Read | Self::Change { .. })
    }

    /// Of a change that is in doubt: what to do about that.
    pub fn settle(self) -> &'static str {
        match self {
            Self::Query | Self::Read => "nothing was to be changed",
            Self::Change { named: true } => "a retry with the same --idempotency-key has one effect",
            Self::Change { named: false } => {
                "witan kv get shows whether it has; with an --idempotency-key, a retry would have one effect"
            }
            Self::Node => "witan nodes list shows whether it has",
            Self::Tenant => "witan tenant get shows whether it has",
            Self::Migration => "witan migration show shows whether it has; cancelling it again is harmless",
            Self::Leftovers => "witan migration leftovers shows whether it has; giving them up again is harmless",
            Self::Restore => "witan nodes list shows whether the stores are used; declaring it again is harmless",
            Self::Push => {
                "the coordinator goes on with it: witan plugin list shows the plugin once it is ready, witan plugin events \
                 why it is refused, and witan plugin show DIGEST how far it is; pushing it again is harmless"
            }
            Self::Bind => "witan plugin bindings shows whether it has; witan plugin events why it has not",
            Self::RemovePlugin => "witan plugin list shows whether it has",
            Self::SigningKey => "witan plugin keys list shows whether it has; adding it again is harmless",
            Self::PluginClass => "witan plugin list shows whether it has; granting it again is harmless",
            Self::Token => "witan token list shows whether it has; revoke a token whose secret you did not get",
        }
    }
}
