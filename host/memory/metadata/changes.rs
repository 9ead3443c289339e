//! The log of changes.

use std::pin::Pin;

use tokio::sync::watch;
use witan_kernel::port::{Answer, ChangeLog, Changes, Hint, rules};

use super::MemoryMetadata;

struct Hints(watch::Receiver<u64>);

impl Hint for Hints {
    fn given(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if self.0.changed().await.is_err() {
                // The store is gone, and with it every further hint.
                std::future::pending::<()>().await;
            }
        })
    }
}

impl ChangeLog for MemoryMetadata {
    fn changes(&self, after: u64) -> Answer<Changes> {
        self.answer(move |state| {
            let complete = rules::complete(after, state.revision);
            let since = if complete { after.saturating_add(1) } else { u64::MAX };
            let all = state.changes.range(since..).map(|(_, changed)| changed.clone());
            Ok(Changes { revision: state.revision, complete, changed: rules::each_once(all) })
        })
    }

    fn hint(&self) -> Box<dyn Hint> {
        Box::new(Hints(self.hint.subscribe()))
    }
}
