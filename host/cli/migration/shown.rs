//! How a migration is shown: its change, state and progress, for people and as JSON.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_wire::v1::{GetMigrationStatusResponse, MigrationProgress};

use crate::cli::output::{self, Output, grouped, inline};

/// Prints one migration.
pub(super) fn show(output: Output, it: &GetMigrationStatusResponse) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        output::object(&json_of(it))?;
        return Ok(ExitCode::SUCCESS);
    }
    let MigrationProgress { keys_migrated, total_keys, percentage, bytes_migrated, .. } = progress(it);
    let mut lines = vec![
        format!("migration {}: {}", it.migration_id, inline(&change(it))),
        format!("  status         {}", status(it)),
    ];
    let mut more = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<14} {value}"));
        }
    };
    more("phase", it.phase.clone());
    more("done", format!("{percentage:.1} %"));
    // A store is filled for all tenants at once.
    let of_tenants = it.r#type != "replace_store";
    more("tenants", if of_tenants { format!("{} of {}", it.tenants_done, it.tenants_total) } else { String::new() });
    more("keys", format!("{} of about {}", number(keys_migrated), number(total_keys)));
    more("sent", bytes(u64::try_from(bytes_migrated).unwrap_or(0)));
    more("now", inline(if it.error_message.is_empty() { &it.message } else { "" }).into_owned());
    more("failed", inline(&it.error_message).into_owned());
    more("asked for", moment(it.created_at));
    more("began", moment(it.started_at));
    more("ends about", moment(it.estimated_completion));
    more("ended", moment(it.finished_at));
    output::text(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What a migration changes, in a few words.
pub(super) fn change(it: &GetMigrationStatusResponse) -> String {
    match it.r#type.as_str() {
        "add_node" => format!("add node {}", it.node_id),
        "remove_node" if it.force => format!("remove node {} by force", it.node_id),
        "remove_node" => format!("remove node {}", it.node_id),
        "zones" | "weight" => update(it),
        "replace_store" => format!("fill the new store of node {}", it.node_id),
        "routing_hook" => format!("another routing hook for tenant {}", it.tenant_id),
        _ => format!(
            "{} replicas for tenant {} ({} before)",
            it.new_replication_factor, it.tenant_id, it.old_replication_factor
        ),
    }
}

fn update(it: &GetMigrationStatusResponse) -> String {
    let name = |zone: &str| if zone.is_empty() { "no zone".to_owned() } else { format!("zone {zone}") };
    let mut parts = Vec::new();
    if it.old_zone != it.new_zone {
        parts.push(format!("{} for node {} ({} before)", name(&it.new_zone), it.node_id, name(&it.old_zone)));
    }
    if it.old_virtual_nodes != it.new_virtual_nodes {
        let (new, old) = (it.new_virtual_nodes, it.old_virtual_nodes);
        parts.push(format!("{new} virtual nodes for node {} ({old} before)", it.node_id));
    }
    parts.join(" and ")
}

/// The state of a migration, for people.
pub(super) fn status(it: &GetMigrationStatusResponse) -> &str {
    match it.status.as_str() {
        "pending" | "in_progress" if it.cancel_requested => "being given up",
        "in_progress" => "in progress",
        other => other,
    }
}

/// How far a migration is.
pub(super) fn progress(it: &GetMigrationStatusResponse) -> MigrationProgress {
    it.progress.unwrap_or_default()
}

/// A number for people.
pub(super) fn number(value: i64) -> String {
    grouped(u64::try_from(value).unwrap_or(0))
}

/// A time in Unix seconds; nothing for 0.
pub(super) fn moment(seconds: i64) -> String {
    if seconds == 0 { String::new() } else { output::moment(seconds.saturating_mul(1_000_000)) }
}

/// Bytes for people: "420 B", "3.1 KiB", "12.0 MiB".
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let (mut scaled, mut unit) = (value as f64 / 1024.0, 0);
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// A migration as JSON.
pub(super) fn json_of(it: &GetMigrationStatusResponse) -> Value {
    let MigrationProgress { keys_migrated, total_keys, percentage, bytes_migrated, total_bytes } = progress(it);
    json!({
        "migration_id": it.migration_id,
        "type": it.r#type,
        "node_id": it.node_id,
        "tenant_id": it.tenant_id,
        "force": it.force,
        "old_virtual_nodes": it.old_virtual_nodes,
        "new_virtual_nodes": it.new_virtual_nodes,
        "old_zone": it.old_zone,
        "new_zone": it.new_zone,
        "old_replication_factor": it.old_replication_factor,
        "new_replication_factor": it.new_replication_factor,
        "status": it.status,
        "cancel_requested": it.cancel_requested,
        "phase": it.phase,
        "progress": {
            "keys_migrated": keys_migrated,
            "total_keys": total_keys,
            "percentage": percentage,
            "bytes_migrated": bytes_migrated,
            "total_bytes": total_bytes,
        },
        "tenants_done": it.tenants_done,
        "tenants_total": it.tenants_total,
        "message": it.message,
        "error_message": it.error_message,
        "created_at": it.created_at,
        "started_at": it.started_at,
        "estimated_completion": it.estimated_completion,
        "finished_at": it.finished_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_said_in_a_few_words() {
        let it = |kind: &str, force| GetMigrationStatusResponse {
            r#type: kind.to_owned(),
            node_id: "n4".to_owned(),
            tenant_id: "shop".to_owned(),
            old_replication_factor: 2,
            new_replication_factor: 3,
            force,
            ..Default::default()
        };
        assert_eq!(change(&it("add_node", false)), "add node n4");
        assert_eq!(change(&it("remove_node", true)), "remove node n4 by force");
        assert_eq!(change(&it("replace_store", false)), "fill the new store of node n4");
        assert_eq!(change(&it("replication_factor", false)), "3 replicas for tenant shop (2 before)");
        let weight =
            GetMigrationStatusResponse { old_virtual_nodes: 150, new_virtual_nodes: 75, ..it("weight", false) };
        assert_eq!(change(&weight), "75 virtual nodes for node n4 (150 before)");
        let zones = GetMigrationStatusResponse { new_zone: "rack-1".to_owned(), ..it("zones", false) };
        assert_eq!(change(&zones), "zone rack-1 for node n4 (no zone before)");
    }

    #[test]
    fn sizes_are_shortened() {
        let all = [0, 1023, 1024, 1536, 12 << 20, 5 << 30, 3 << 50].map(bytes);
        assert_eq!(all, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "12.0 MiB", "5.0 GiB", "3072.0 TiB"]);
    }
}
