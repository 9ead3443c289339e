//! Storage nodes and their stores.

use witan_kernel::name::{NodeId, StoreId, Zone};
use witan_kernel::port::{
    Answer, Changed, Commit, Met, NODES, NodeOnRecord, NodeStatus, Placement, PlacementStore, StorageNode, StoreError,
    StoreOnRecord, rules,
};

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata, changes, leftovers, rings, stores};

impl<D: Driver> PlacementStore for SqlMetadata<D> {
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(found_nodes(db, nodes, now_ms)))
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(add_node(db, node, now_ms)))
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(put_node(db, node, now_ms)))
    }

    fn readdress_node(&self, id: &NodeId, host: &str, port: u16, now_ms: u64) -> Answer<()> {
        let (id, host) = (id.clone(), host.to_owned());
        self.change(move |db| Box::pin(readdress_node(db, id, host, port, now_ms)))
    }

    fn drain_node(&self, id: &NodeId, drained: bool, now_ms: u64) -> Answer<()> {
        let id = id.clone();
        self.change(move |db| Box::pin(drain_node(db, id, drained, now_ms)))
    }

    fn placement(&self) -> Answer<Placement> {
        self.read(|db| Box::pin(placement(db)))
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.change(|db| Box::pin(remove_node(db, id)))
    }

    fn meet_store(&self, id: &NodeId, store: StoreId, commit: u64, before: u64) -> Answer<Met> {
        let id = id.clone();
        self.change(move |db| Box::pin(stores::meet(db, id, store, (commit, before))))
    }

    fn admit_store(&self, id: &NodeId, from: StoreId, store: StoreId) -> Answer<()> {
        let id = id.clone();
        self.change(move |db| Box::pin(async move { stores::admit(db, id, from, store).await.map(drop) }))
    }

    fn replace_store(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()> {
        let id = id.clone();
        self.change(move |db| Box::pin(stores::replace(db, id, from, to)))
    }

    fn stores(&self) -> Answer<Vec<StoreOnRecord>> {
        self.read(|db| Box::pin(stores::all(db)))
    }

    fn note_commits(&self, commits: Vec<Commit>) -> Answer<()> {
        self.write(move |db| Box::pin(stores::note_commits(db, commits)))
    }
}

async fn found_nodes(db: &mut Db, nodes: Vec<StorageNode>, now_ms: u64) -> Result<(), StoreError> {
    if count_nodes(db).await? > 0 {
        return Ok(());
    }
    for node in nodes {
        add_node(db, node, now_ms).await?;
    }
    Ok(())
}

async fn add_node(db: &mut Db, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    if node_exists(db, &node.id).await? {
        return Err(rules::node_exists(&node.id));
    }
    put_node(db, node, now_ms).await
}

async fn put_node(db: &mut Db, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    rules::node(&node)?;
    let is_new = !node_exists(db, &node.id).await?;
    if is_new && count_nodes(db).await? >= NODES {
        return Err(rules::too_many_nodes());
    }
    rings::put_member(db, &node, is_new).await?;
    write_node(db, &node, now_ms).await?;
    changed(db).await.map(drop)
}

async fn readdress_node(db: &mut Db, id: NodeId, host: String, port: u16, now_ms: u64) -> Result<(), StoreError> {
    let known = placement(db).await?.nodes.into_iter().find(|known| known.node.id == id);
    let known = known.ok_or_else(|| rules::no_node(&id))?.node;
    put_node(db, StorageNode { host, port, ..known }, now_ms).await
}

async fn drain_node(db: &mut Db, id: NodeId, drained: bool, now_ms: u64) -> Result<(), StoreError> {
    if !node_exists(db, &id).await? {
        return Err(rules::no_node(&id));
    }
    let values = [Value::Text(id.as_str()), Value::Flag(drained), Value::Number(now_ms)];
    let sql = "UPDATE storage_nodes SET drained = $2, updated_at = $3 WHERE node_id = $1 AND drained <> $2";
    if db.execute(sql, &values).await? > 0 {
        changes::record(db, Changed::Nodes).await?;
    }
    Ok(())
}

pub(super) async fn write_node(db: &mut Db, node: &StorageNode, now_ms: u64) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO storage_nodes (node_id, host, port, status, virtual_nodes, created_at, updated_at, zone)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7)
         ON CONFLICT (node_id) DO UPDATE SET host = $2, port = $3, status = $4, virtual_nodes = $5, updated_at = $6, zone = $7",
        &[
            Value::Text(node.id.as_str()),
            Value::Text(&node.host),
            Value::Number(node.port.into()),
            Value::Text(node.status.as_str()),
            Value::Number(node.virtual_nodes.into()),
            Value::Number(now_ms),
            Value::Text(node.zone.as_str()),
        ],
    )
    .await
    .map(drop)
}

/// The next epoch of the placement.
pub(super) async fn changed(db: &mut Db) -> Result<u64, StoreError> {
    let epoch = changes::record(db, Changed::Nodes).await?;
    db.execute("UPDATE cluster_state SET placement_epoch = $1", &[Value::Number(epoch)]).await?;
    Ok(epoch)
}

async fn count_nodes(db: &mut Db) -> Result<usize, StoreError> {
    db.one("SELECT COUNT(*) AS nodes FROM storage_nodes", &[]).await?.number("nodes")
}

async fn node_exists(db: &mut Db, id: &NodeId) -> Result<bool, StoreError> {
    let found = db.row("SELECT node_id FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await;
    Ok(found?.is_some())
}

/// In one statement, so that epoch, nodes and rings are of one moment.
pub(super) async fn placement(db: &mut Db) -> Result<Placement, StoreError> {
    let rows = db
        .rows(
            "SELECT placement_epoch, node_id, host, port, status, virtual_nodes, zone, store_id, created_at,
                 updated_at, drained, NULL AS ring
             FROM cluster_state LEFT JOIN storage_nodes ON 1 = 1
             UNION ALL
             SELECT NULL, node_id, NULL, NULL, NULL, virtual_nodes, zone, NULL, NULL, NULL, NULL, version FROM rings
             ORDER BY node_id",
            &[],
        )
        .await?;
    let (mut epoch, mut nodes, mut on_rings) = (None, Vec::with_capacity(rows.len()), Vec::new());
    for row in &rows {
        if let Some(version) = row.maybe_number::<u64>("ring")? {
            on_rings.push((version, row));
            continue;
        }
        epoch = row.maybe_number("placement_epoch")?;
        if row.maybe_text("node_id")?.is_some() {
            nodes.push(node(row)?);
        }
    }
    let epoch = epoch.ok_or_else(|| StoreError::Damaged("the cluster's state is missing".into()))?;
    let rings = rings::read(on_rings, &nodes)?;
    Ok(Placement { epoch, nodes, rings })
}

async fn remove_node(db: &mut Db, id: NodeId) -> Result<(), StoreError> {
    if !forget_node(db, &id).await? {
        return Err(rules::no_node(&id));
    }
    db.execute("DELETE FROM stores WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    rings::forget_member(db, &id).await?;
    changed(db).await.map(drop)
}

/// Forgets a node, and what it owes and has left over. Its stores stay as they are. False if it is not on record.
pub(super) async fn forget_node(db: &mut Db, id: &NodeId) -> Result<bool, StoreError> {
    let forgotten = db.execute("DELETE FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    db.execute("DELETE FROM owed_fences WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    db.execute("DELETE FROM owed_removals WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    leftovers::forget_of_node(db, id).await?;
    Ok(forgotten > 0)
}

fn node(row: &Row) -> Result<NodeOnRecord, StoreError> {
    Ok(NodeOnRecord {
        node: StorageNode {
            id: row.spelled("node_id", |text| NodeId::new(text).ok())?,
            host: row.text("host")?,
            port: row.number("port")?,
            virtual_nodes: row.number("virtual_nodes")?,
            status: row.spelled("status", NodeStatus::parse)?,
            zone: row.spelled("zone", |text| Zone::new(text).ok())?,
        },
        store_id: stores::store_id(row)?,
        drained: row.flag("drained")?,
        created_at_ms: row.number("created_at")?,
        updated_at_ms: row.number("updated_at")?,
    })
}
