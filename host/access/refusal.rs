//! Why a call is refused, and what the client can do about it.

use std::time::Duration;

use witan_kernel::name::TenantId;

use super::scope::{Scope, Scopes};

/// Why a call is refused, before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It carries no credential.
    #[error("a credential is missing: send `authorization: Bearer TOKEN`; `witan token create` creates a token")]
    NoCredential,
    /// Its credential is malformed.
    #[error("the credential cannot be read: send `authorization: Bearer TOKEN` once, with the token as it was shown")]
    Malformed,
    /// The credential is unknown, or was revoked.
    #[error("the credential is not known, or was revoked: ask an operator for another one (`witan token create`)")]
    Unknown,
    /// The credential has expired.
    #[error("the credential has expired: ask for another one (`witan token create`)")]
    Expired,
    /// An invalid web token; the message says what is wrong without showing the token.
    #[error("the web token is refused: {0}")]
    Issuer(&'static str),
    /// The credential lacks a scope.
    #[error("this needs the scope {needs}, which the credential does not have")]
    Scope {
        /// The scopes, any of which suffices.
        needs: Scopes,
    },
    /// The credential belongs to another tenant.
    #[error("the credential is not for tenant {tenant}: use one of that tenant, or one for all tenants")]
    Tenant {
        /// The tenant that the call names.
        tenant: TenantId,
    },
    /// The credential is bound to one tenant, and the call is about all.
    #[error("this is about all tenants, and the credential is bound to one: use one for all tenants")]
    Bound,
    /// Too many requests.
    #[error("too many {name} requests{whose}: try again later, or ask an operator for more (`security.rate_limits.{name}`)",
        name = .scope.as_str(),
        whose = .tenant.as_ref().map(|tenant| format!(" of tenant {tenant}")).unwrap_or_default())]
    Rate {
        /// The tenant; `None`: the operators.
        tenant: Option<TenantId>,
        /// The kind of request.
        scope: Scope,
        /// Time until the next request is accepted.
        retry_after: Duration,
    },
    /// Whether the credential is valid cannot be determined.
    #[error("credentials cannot be checked now, because the metadata store does not answer: try again later")]
    Unavailable,
    /// The change would not be on record.
    #[error(
        "changes are refused now, because the audit log cannot be written and they would not be on record: try again later, or ask an \
         operator to look at the log of this coordinator"
    )]
    Unrecorded,
}

/// Kinds of refusals in metrics and in the audit log: a fixed list, so that clients cannot create labels.
pub const KINDS: [&str; 10] = [
    "no_credential",
    "malformed",
    "unknown",
    "expired",
    "web_token",
    "scope",
    "tenant",
    "rate",
    "unavailable",
    "unrecorded",
];

impl Refusal {
    /// Its index in [`KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::NoCredential => 0,
            Self::Malformed => 1,
            Self::Unknown => 2,
            Self::Expired => 3,
            Self::Issuer(_) => 4,
            Self::Scope { .. } => 5,
            Self::Tenant { .. } | Self::Bound => 6,
            Self::Rate { .. } => 7,
            Self::Unavailable => 8,
            Self::Unrecorded => 9,
        }
    }

    /// The reason in the error that the client gets.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCredential | Self::Malformed | Self::Unknown | Self::Expired | Self::Issuer(_) => "UNAUTHORIZED",
            Self::Scope { .. } | Self::Tenant { .. } | Self::Bound => "FORBIDDEN",
            Self::Rate { .. } => "RATE_LIMIT_EXCEEDED",
            Self::Unavailable | Self::Unrecorded => "STORE_UNAVAILABLE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let rate = Refusal::Rate {
            tenant: TenantId::new("acme").ok(),
            scope: Scope::Write,
            retry_after: Duration::from_millis(5),
        };
        let text = rate.to_string();
        assert!(
            text.contains("too many write requests of tenant acme") && text.contains("rate_limits.write"),
            "{text}"
        );
        assert_eq!((KINDS[rate.kind()], rate.reason()), ("rate", "RATE_LIMIT_EXCEEDED"));
        assert!(Refusal::NoCredential.to_string().contains("authorization: Bearer"));
        let scope = Refusal::Scope { needs: Scopes::only(Scope::Admin) };
        assert!(scope.to_string().contains("scope admin"));
    }
}
