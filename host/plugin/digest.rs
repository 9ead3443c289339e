//! A plugin's identity: the SHA-256 of its component.

pub use witan_kernel::port::Digest;
