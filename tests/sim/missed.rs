//! Replicas miss changes, and what was noted of that must be enough: nobody reads or repairs, and nothing is compared routinely.

use std::time::Duration;

use futures::future::join_all;

use crate::client::Client;
use crate::nemesis::{Action, Link};
use crate::play::drained;
use crate::repairs::{NOTICED, holder};
use crate::scenario::Why;
use crate::stage::{Command, Mood, Stage};

/// Operations of each client while a node misses them.
const OPERATIONS: usize = 5;
/// By then a coordinator has put on record that a node has missed something.
const ON_RECORD: Duration = Duration::from_secs(2);
/// A node that is back has no room until then: longer than what was sent is waited for, and than a pass takes that it refuses.
const RELAPSE: Duration = Duration::from_secs(20);

/// Performs [`Act::Miss`](crate::scenario::Act::Miss).
pub(crate) async fn miss(stage: &Stage, clients: &mut [Client], why: Why, relapses: bool) {
    let node = holder(stage, 0);
    match why {
        Why::Away | Why::Dies => stage.command(Command::CutOff(node)),
        Why::FromOne => {
            stage.command(Command::Do(Action::Link { coordinator: 0, node, becomes: Link::Cut }));
        }
        Why::Full => stage.command(Command::Do(Action::FullDisk { node, full: true })),
        Why::Slow => stage.command(Command::Do(Action::SlowDisk { node, ms: 8000 })),
    }
    if !matches!(why, Why::Full | Why::Slow) {
        tokio::time::sleep(NOTICED).await;
    }
    join_all(clients.iter_mut().map(|client| client.work(OPERATIONS, Mood::Stormy))).await;
    if matches!(why, Why::Dies) {
        if !drained(stage).await {
            return;
        }
        tokio::time::sleep(ON_RECORD).await;
        stage.command(Command::Do(Action::CrashCoordinator { coordinator: 0 }));
        tokio::time::sleep(ON_RECORD).await;
    }
    if relapses {
        stage.command(Command::Heal);
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.command(Command::Do(Action::FullDisk { node, full: true }));
        tokio::time::sleep(RELAPSE).await;
    }
}
