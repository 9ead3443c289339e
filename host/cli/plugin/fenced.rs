//! Which storage nodes have not confirmed a change of a binding, and `--wait`, which waits until enough have.

use std::time::Duration;

use serde_json::{Value, json};
use witan_wire::v1::{ListBindingsRequest, ListBindingsResponse, UnfencedBindings};

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::output;

/// How often the coordinator is asked.
const EVERY: Duration = Duration::from_millis(500);

/// Waits until no coordinator that is cut off can go on with what was bound before. Says on standard error for which nodes it waits.
pub(super) async fn until_fenced(global: &Global, tenant: &str) -> anyhow::Result<()> {
    let mut client = client::plugins(global).await?;
    let mut said = String::new();
    loop {
        let request = within(global, ListBindingsRequest { tenant_id: tenant.to_owned() });
        let now = client.list_bindings(request).await.map_err(Problem::query)?.into_inner();
        let waits = match now.unfenced_unknown.as_str() {
            "" => {
                let open = now.unfenced.iter().find(|it| !it.enough && it.tenant_id == tenant);
                let Some(open) = open else { return Ok(()) };
                format!("in force; waiting until storage nodes have confirmed it: {}", open.node_ids.join(", "))
            }
            why => format!("in force; whether storage nodes have confirmed it is not known: {why}"),
        };
        if waits != said {
            output::note(&waits);
            said = waits;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Lines below the table of bindings.
pub(super) fn lines(listed: &ListBindingsResponse) -> Vec<String> {
    let mut lines: Vec<String> = listed.unfenced.iter().map(line).collect();
    if !listed.unfenced_unknown.is_empty() {
        lines.push(format!("fenced: not known: {}", listed.unfenced_unknown));
    }
    lines
}

fn line(it: &UnfencedBindings) -> String {
    let of = if it.tenant_id.is_empty() { "every tenant".to_owned() } else { format!("tenant {}", it.tenant_id) };
    let nodes = it.node_ids.join(", ");
    match it.enough {
        true => format!("fenced: {of}; pending, but not needed: {nodes}"),
        false => format!(
            "fenced: {of}: pending: {nodes} (a coordinator that is cut off from the metadata store may still go by what was bound before)"
        ),
    }
}

/// The fields beside the bindings.
pub(super) fn fields(listed: &ListBindingsResponse) -> Value {
    let unfenced = |it: &UnfencedBindings| json!({ "tenant": it.tenant_id, "nodes": it.node_ids, "enough": it.enough });
    json!({
        "unfenced": listed.unfenced.iter().map(unfenced).collect::<Vec<_>>(),
        "unfenced_unknown": listed.unfenced_unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_which_nodes_are_pending_and_what_that_means() {
        let of = |tenant: &str, enough| UnfencedBindings {
            tenant_id: tenant.to_owned(),
            node_ids: vec!["n2".to_owned(), "n3".to_owned()],
            enough,
        };
        let listed = ListBindingsResponse {
            unfenced: vec![of("", false), of("carts", true)],
            ..ListBindingsResponse::default()
        };
        let said = lines(&listed);
        assert!(
            said[0].starts_with("fenced: every tenant: pending: n2, n3 (a coordinator that is cut off"),
            "{said:?}"
        );
        assert_eq!(said[1], "fenced: tenant carts; pending, but not needed: n2, n3");
        assert_eq!(fields(&listed)["unfenced"][1], json!({ "tenant": "carts", "nodes": ["n2", "n3"], "enough": true }));
        let unknown =
            ListBindingsResponse { unfenced_unknown: "it is down".to_owned(), ..ListBindingsResponse::default() };
        assert_eq!(lines(&unknown), ["fenced: not known: it is down"]);
    }
}
