//! The lines of plugins, as a stream.

use std::pin::Pin;

use futures::stream;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use witan_plugin::lines::{Batch, Line, Tail};
use witan_wire::v1;

use super::{PluginApi, own_slot, status};
use crate::grpc::guard::{caller, while_good};

/// Lines of a plugin.
pub(super) type Lines = Pin<Box<dyn Stream<Item = Result<v1::TailPluginLogsResponse, Status>> + Send>>;

impl PluginApi {
    pub(super) fn tail(&self, mut request: Request<v1::TailPluginLogsRequest>) -> Result<Response<Lines>, Status> {
        let caller = caller(&mut request)?;
        let v1::TailPluginLogsRequest { tenant_id, hook, follow } = request.into_inner();
        let (tenant, hook) = own_slot(&caller, &tenant_id, &hook)?;
        let tail = self.host.tail(tenant, hook).map_err(status)?;
        // One batch at a time, when the client has taken the one before.
        let lines = stream::unfold(tail, move |tail| next(tail, follow));
        Ok(Response::new(while_good(caller, lines)))
    }
}

async fn next(mut tail: Tail, follow: bool) -> Option<(Result<v1::TailPluginLogsResponse, Status>, Tail)> {
    let batch = if follow { tail.follow().await } else { tail.read() };
    (!batch.lines.is_empty()).then(|| (Ok(shown(batch)), tail))
}

fn shown(Batch { lines, missed }: Batch) -> v1::TailPluginLogsResponse {
    v1::TailPluginLogsResponse { lines: lines.into_iter().map(line).collect(), missed }
}

fn line(line: Line) -> v1::PluginLogLine {
    v1::PluginLogLine {
        at_ms: i64::try_from(line.at_ms).unwrap_or(i64::MAX),
        severity: line.severity.as_str().to_owned(),
        plugin: line.by.to_string(),
        tenant_id: line.tenant.map_or_else(String::new, |tenant| tenant.to_string()),
        message: line.text,
        dropped: line.dropped,
    }
}
