//! Who may do what: credentials, scopes, rates, and a record of what was changed and refused. One layer before every server
//! of a coordinator asks here; nothing behind it decides about access again.

pub mod config;
