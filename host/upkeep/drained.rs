//! Puts on record up to which revision every operation here follows all changes: before a placement change goes on, no live coordinator
//! should have operations under way that nodes would then refuse.

use std::time::Duration;

use tokio::time::sleep;
use witan_coordinate::World;
use witan_kernel::port::Claimant;

use super::Upkeep;

/// The pause after the metadata store has not answered.
const PAUSE: Duration = Duration::from_millis(500);

impl<W: World> Upkeep<W> {
    /// Notes it whenever it has risen, for as long as it is polled.
    pub async fn note_drained(&self, own: Claimant) {
        let mut noted = 0;
        loop {
            let drained = self.coordinator.drained_revision();
            if drained <= noted {
                self.coordinator.drains().await;
                continue;
            }
            match self.metadata.note_drained(&own.coordinator, own.instance, drained).await {
                Ok(()) => noted = drained,
                Err(error) => {
                    tracing::debug!(%error, drained, "could not be noted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
