//! Idempotency records on disk and in Redis. What a step does is decided by [`witan_kernel::idempotency::apply`]; a store makes it
//! atomic and durable, and provides the time.

mod embedded;
mod redis;

pub use self::redis::{
    FILLING, RedisConfig, RedisCredentials, RedisFacts, RedisFinding, RedisIdempotency, RedisServers, RedisTls,
};
pub use embedded::EmbeddedIdempotency;
