//! One attempt at a request: how long its client waits, what gets lost on the way, and whether the coordinator keeps the deadline.

use std::time::Duration;

use rand::Rng;
use tokio::sync::oneshot;
use witan_kernel::failure::Failed;

use super::Client;
use crate::cluster::Call;
use crate::stage::Mood;
use crate::world::now_micros;

/// The result of sending one request.
pub(super) enum Attempt<T> {
    /// An answer arrived.
    Answered(Result<T, Failed>),
    /// The request was not sent.
    NotSent,
    /// No answer arrived in time.
    Lost,
}

/// The deadline of requests without faults: the longest that a coordinator allows.
const CALM_TIMEOUT: Duration = Duration::from_secs(10);
/// An operation without faults takes no longer. The slowest needs six messages in a row over links of a tenth of a second.
const LIVELY: Duration = Duration::from_millis(2500);
/// How much later than its deadline an answer may come: what is left of the steps of the idempotency store, and of the simulation's ticks.
const SLACK: Duration = Duration::from_millis(150);
/// How long a client waits beyond its request's deadline before it concludes that no answer comes.
const BEYOND: Duration = Duration::from_millis(400);
/// Share of clients that give up before the deadline of their request, per mille.
const IMPATIENT: u64 = 200;

impl Client {
    /// Sends one request and waits for the answer, over a network that may lose either. `call` is given the request's deadline.
    pub(super) async fn attempt<T>(
        &mut self,
        coordinator: usize,
        mood: Mood,
        what: &str,
        call: impl FnOnce(Duration, oneshot::Sender<Result<T, Failed>>) -> Call,
    ) -> Attempt<T> {
        let stormy = mood == Mood::Stormy;
        let (timeout, patience) = self.patience(mood);
        let machine = self.stage.cluster.coordinators[coordinator].clone();
        let Some(doors) = machine.doors() else { return Attempt::NotSent };
        let way = Duration::from_millis(self.rng.random_range(0..=4));
        tokio::time::sleep(way).await;
        if stormy && self.chance(self.manner().lost) {
            tokio::time::sleep(timeout).await;
            return Attempt::Lost;
        }
        let (to, answer) = oneshot::channel();
        let (life, sent) = (machine.life(), now_micros());
        if doors.calls.send(call(timeout, to)).is_err() {
            return Attempt::NotSent;
        }
        if stormy && self.chance(self.manner().cancelled) {
            let soon = Duration::from_millis(self.rng.random_range(0..=60));
            tokio::time::sleep(soon).await;
            return Attempt::Lost;
        }
        let answer = tokio::time::timeout(patience, answer).await;
        let took = Duration::from_micros(now_micros() - sent);
        // A coordinator that crashes or is stopped meanwhile cannot keep a deadline.
        if life.is_some() && machine.life() == life {
            if took > timeout + SLACK {
                let answer = if answer.is_ok() { "an answer" } else { "no answer" };
                self.stage
                    .violated(format!("deadline: {what} with a deadline of {timeout:?} got {answer} after {took:?}"));
            }
            if !stormy && took > LIVELY {
                self.stage.violated(format!("liveness: {what} took {took:?} without faults"));
            }
        }
        match answer {
            Ok(Ok(_)) if stormy && self.chance(self.manner().lost) => Attempt::Lost,
            Ok(Ok(result)) => Attempt::Answered(result),
            Ok(Err(_)) | Err(_) => Attempt::Lost,
        }
    }

    /// The deadline of a request, and how long its client waits: mostly longer than that, to learn what became of it.
    fn patience(&mut self, mood: Mood) -> (Duration, Duration) {
        if mood != Mood::Stormy {
            return (CALM_TIMEOUT, CALM_TIMEOUT + BEYOND);
        }
        let timeout = self.rng.random_range(60..=self.manner().patience_ms);
        let timeout = Duration::from_millis(timeout);
        let gives_up = self.chance(IMPATIENT);
        (timeout, if gives_up { timeout.mul_f64(self.rng.random_range(0.2..1.0)) } else { timeout + BEYOND })
    }
}
