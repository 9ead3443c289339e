//! The versions of the ring, and their members. As long as none is on record, there is one, number 0, of which every node is a member.

use std::collections::BTreeMap;

use witan_kernel::name::{NodeId, Zone};
use witan_kernel::port::{NodeOnRecord, RingOnRecord, StorageNode, StoreError};
use witan_kernel::ring::Member;

use super::db::{Db, Value};
use super::row::Row;

/// The number of the newest version.
pub(super) async fn newest(db: &mut Db) -> Result<u64, StoreError> {
    db.one("SELECT COALESCE(MAX(version), 0) AS newest FROM rings", &[]).await?.number("newest")
}

/// Rows of `rings` by node, each with its version, as versions; `nodes` are all nodes on record.
pub(super) fn read(rows: Vec<(u64, &Row)>, nodes: &[NodeOnRecord]) -> Result<Vec<RingOnRecord>, StoreError> {
    let mut rings: BTreeMap<u64, Vec<Member>> = BTreeMap::new();
    for (version, row) in rows {
        let members = rings.entry(version).or_default();
        // '' is no member: it makes a version that has none a version all the same.
        if !row.text("node_id")?.is_empty() {
            members.push(Member {
                node: row.spelled("node_id", |text| NodeId::new(text).ok())?,
                virtual_nodes: row.number("virtual_nodes")?,
                zone: row.spelled("zone", |text| Zone::new(text).ok())?,
            });
        }
    }
    if rings.is_empty() {
        rings.insert(0, nodes.iter().map(|on_record| on_record.node.member()).collect());
    }
    Ok(rings.into_iter().map(|(version, members)| RingOnRecord { version, members }).collect())
}

/// Records a version that is not on record.
pub(super) async fn add(db: &mut Db, version: u64, members: &[Member]) -> Result<(), StoreError> {
    let itself = ("", 0, "");
    let members = members.iter().map(|member| (member.node.as_str(), member.virtual_nodes, member.zone.as_str()));
    for (node, virtual_nodes, zone) in std::iter::once(itself).chain(members) {
        db.execute(
            "INSERT INTO rings (version, node_id, virtual_nodes, zone) VALUES ($1, $2, $3, $4)",
            &[Value::Number(version), Value::Text(node), Value::Number(virtual_nodes.into()), Value::Text(zone)],
        )
        .await?;
    }
    Ok(())
}

/// True if any version is on record.
pub(super) async fn are_on_record(db: &mut Db) -> Result<bool, StoreError> {
    Ok(db.row("SELECT version FROM rings LIMIT 1", &[]).await?.is_some())
}

/// A node is a member of the newest version on record, if it is new or was one before: one that leaves does not become one by another
/// address.
pub(super) async fn put_member(db: &mut Db, node: &StorageNode, is_new: bool) -> Result<(), StoreError> {
    if !are_on_record(db).await? {
        return Ok(());
    }
    let newest = Value::Number(newest(db).await?);
    let (virtual_nodes, zone) = (Value::Number(node.virtual_nodes.into()), Value::Text(node.zone.as_str()));
    let values = [newest, Value::Text(node.id.as_str()), virtual_nodes, zone];
    let sql = if is_new {
        "INSERT INTO rings (version, node_id, virtual_nodes, zone) VALUES ($1, $2, $3, $4)
         ON CONFLICT (version, node_id) DO UPDATE SET virtual_nodes = $3, zone = $4"
    } else {
        "UPDATE rings SET virtual_nodes = $3, zone = $4 WHERE version = $1 AND node_id = $2"
    };
    db.execute(sql, &values).await.map(drop)
}

/// A node is a member of no version.
pub(super) async fn forget_member(db: &mut Db, id: &NodeId) -> Result<(), StoreError> {
    db.execute("DELETE FROM rings WHERE node_id = $1", &[Value::Text(id.as_str())]).await.map(drop)
}

pub(super) async fn forget(db: &mut Db, version: u64) -> Result<(), StoreError> {
    db.execute("DELETE FROM rings WHERE version = $1", &[Value::Number(version)]).await.map(drop)
}
