//! Throughput against a baseline.

fn main() {}
