//! The ports of a simulated coordinator.

use std::sync::Arc;

use witan_coordinate::World;

use crate::heard::Heard;
use crate::stores::{Idempotency, View};
use crate::world::{Dice, SimClock};

/// The ports of the simulation.
pub(crate) struct Simulated;

impl World for Simulated {
    type Clock = SimClock;
    type Randomness = Dice;
    type Replicas = Arc<Heard>;
    type Idempotency = Idempotency;
    type Tenants = View;
}
