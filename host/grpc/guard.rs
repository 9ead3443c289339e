//! The layer in front of every service: it authenticates the caller and admits the call, or responds with the reason for refusing
//! it. Checks that need the decoded request (tenant, rate) are made on the [`Caller`] that it adds to the request's extensions.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::{Either, Ready, ready};
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic_types::StatusExt;
use tower::{Layer, Service};
use witan_net::{Peer, discard};

use super::status;
use crate::access::audit::Place;
use crate::access::caller::{Caller, Origin};
use crate::access::refusal::Refusal;
use crate::access::scope::{self, Effect, Need, Rule};
use crate::access::{Access, shown};
use witan_coordinate::{Coordinator, World};
use witan_kernel::port::Clock;
use witan_origin as origin;

/// The layer that puts the guard in front of services.
#[derive(Clone)]
pub(super) struct Guard(pub(super) Arc<Access>);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { access: Arc::clone(&self.0), inner }
    }
}

/// A service behind the guard.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    access: Arc<Access>,
    inner: S,
}

type Answer<E> = Result<Response<Body>, E>;
type Later<E> = Pin<Box<dyn Future<Output = Answer<E>> + Send>>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Answer<S::Error>>, Either<S::Future, Later<S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rule = scope::of_call(request.uri().path());
        if let Some(encoding) = compression(request.headers()) {
            return Either::Left(ready(Ok(status::compressed(&encoding, rule.effect != Effect::Nothing))));
        }
        if rule.need == Need::Nothing {
            return Either::Right(Either::Left(self.inner.call(request)));
        }
        let origin = origin(&request);
        match self.access.admit(rule, shown(request.headers()), &origin) {
            Some(Ok(caller)) if caller.is_recorded() => {
                request.extensions_mut().insert(caller.clone());
                Either::Right(Either::Right(Box::pin(recorded(self.inner.call(request), caller))))
            }
            Some(Ok(caller)) => {
                request.extensions_mut().insert(caller);
                Either::Right(Either::Left(self.inner.call(request)))
            }
            Some(Err(refusal)) => {
                discard(request.into_body());
                Either::Left(ready(Ok(refused(&refusal, rule))))
            }
            None => {
                let access = Arc::clone(&self.access);
                // The service that was polled ready is consumed by this call; its clone is kept for the next one.
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                Either::Right(Either::Right(Box::pin(unseen(access, rule, origin, inner, request))))
            }
        }
    }
}

/// How the messages of a call are compressed, shortened for an error.
fn compression(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get("grpc-encoding").filter(|encoding| *encoding != "identity")?;
    Some(String::from_utf8_lossy(encoding.as_bytes()).chars().take(40).collect())
}

/// A call whose token has to be looked up in the database.
async fn unseen<S>(
    access: Arc<Access>,
    rule: &'static Rule,
    origin: Origin,
    mut inner: S,
    mut request: Request<Body>,
) -> Answer<S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let shown = shown(request.headers()).map(<[u8]>::to_vec);
    match access.admit_unseen(rule, shown.as_deref(), &origin).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            recorded(inner.call(request), caller).await
        }
        Err(refusal) => {
            discard(request.into_body());
            Ok(refused(&refusal, rule))
        }
    }
}

/// Writes the end of a change to the audit log, in which it takes a place before it begins. A cancelled call is recorded with an unknown
/// outcome.
async fn recorded<E>(call: impl Future<Output = Answer<E>>, caller: Caller) -> Answer<E> {
    if !caller.is_recorded() {
        return call.await;
    }
    let place = match caller.place().await {
        Ok(place) => place,
        Err(refusal) => return Ok(refused(&refusal, caller.rule())),
    };
    let mut record = Record(Some((caller, place)));
    let answer = call.await;
    if let (Some((caller, place)), Ok(response)) = (record.0.take(), &answer) {
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok => ended(&caller, place, &status),
            _ if caller.rule().streams => caller.changed(place, "begun", None),
            _ => caller.changed(place, "done", None),
        }
    }
    answer
}

/// Records a call that has failed.
fn ended(caller: &Caller, place: Place, status: &Status) {
    let info = status.get_details_error_info();
    let reason = info.as_ref().map(|info| info.reason.as_str());
    let outcome = info.as_ref().and_then(|info| info.metadata.get("outcome"));
    let shown = Some(reason.unwrap_or(status.code().description()));
    match (outcome.map(String::as_str), reason) {
        // A refusal has been recorded with its reason already.
        (_, Some("FORBIDDEN" | "RATE_LIMIT_EXCEEDED")) => {}
        (Some("not-applied"), _) => caller.failed("failed", shown),
        _ if !caller.may_have_begun() => caller.failed("failed", shown),
        _ => caller.changed(place, "failed", shown),
    }
}

struct Record(Option<(Caller, Place)>);

impl Drop for Record {
    fn drop(&mut self) {
        match self.0.take() {
            Some((caller, place)) if caller.may_have_begun() => caller.changed(place, "abandoned", None),
            Some((caller, _)) => caller.failed("abandoned", None),
            None => {}
        }
    }
}

fn refused(refusal: &Refusal, rule: &Rule) -> Response<Body> {
    status::refusal(refusal, rule.effect != Effect::Nothing).status().into_http()
}

fn origin(request: &Request<Body>) -> Origin {
    Origin {
        peer: request.extensions().get::<Peer>().map(|peer| peer.address),
        request_id: origin::current().map(|origin| origin.id),
        arrived: Some(Instant::now()),
    }
}

/// The caller, as the guard left it. A call that bypassed the guard is refused.
pub(crate) fn caller<T>(request: &mut tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions_mut().remove::<Caller>();
    caller.ok_or_else(|| Status::internal("this call bypassed the access check and is not served"))
}

/// When a call arrived, in microseconds of the coordinator's monotonic clock: its deadline counts from then, although its message may have
/// taken long to arrive, and its token long to be found.
pub(super) fn arrival<W: World>(coordinator: &Coordinator<W>, caller: &Caller) -> u64 {
    let waited = u64::try_from(caller.waited().as_micros()).unwrap_or(u64::MAX);
    coordinator.ports().clock.monotonic_micros().saturating_sub(waited)
}

/// A stream that ends, with the reason, when the credential that opened it is no longer valid.
pub(crate) fn while_good<T: Send + 'static>(
    caller: Caller,
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>> {
    let ended = Box::pin(async move { status::refusal(&caller.until_ended().await, false).status() });
    Box::pin(stream::unfold(Some((Box::pin(answers), ended)), async |open| {
        let (mut answers, mut ended) = open?;
        tokio::select! {
            biased;
            status = &mut ended => Some((Err(status), None)),
            answer = answers.next() => answer.map(|answer| (answer, Some((answers, ended)))),
        }
    }))
}

/// The status for a caller that is not allowed to do what the call asks for.
pub(crate) fn denied(caller: &Caller, refused: &Refusal) -> Status {
    status::refusal(refused, caller.rule().effect != Effect::Nothing).status()
}
