//! Witan: a coordinator for Dynamo-style replicated key-value storage whose decisions are plugins.

pub mod coordinate;
