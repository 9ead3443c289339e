//! The stores of storage nodes: which is on record, which is admitted in its place, and what became of earlier ones.

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::stores::{self, Meeting};
use witan_kernel::port::{Changed, Commit, Met, StoreError, StoreOnRecord, StoreState, rules};
use witan_kernel::scan::Trust;

use super::changes;
use super::db::{Db, Value};
use super::row::{Row, damaged};

pub(super) async fn meet(
    db: &mut Db,
    id: NodeId,
    store: StoreId,
    commit_and_before: (u64, u64),
) -> Result<Met, StoreError> {
    let on_record = on_record(db, &id).await?;
    let (met, meeting) = stores::meet(&id, on_record, store, commit_and_before, &concerned(db, &id, store).await?);
    // Nothing is remembered of a store that nobody uses: a node without a disk of its own comes with a new one after each start.
    if meeting != Meeting::Known || met.trust != Trust::Unadmitted {
        know(db, &id, store).await?;
    }
    match meeting {
        Meeting::Known => return Ok(met),
        Meeting::First => put_on_record(db, &id, store).await?,
        Meeting::Back => drop_admitted(db, &id).await?,
        Meeting::SetBack => set_state(db, store, StoreState::SetBack).await?,
    }
    changes::record(db, Changed::Nodes).await?;
    Ok(met)
}

/// Returns the revision.
pub(super) async fn admit(db: &mut Db, id: NodeId, from: StoreId, store: StoreId) -> Result<u64, StoreError> {
    let on_record = on_record(db, &id).await?;
    stores::admits(&id, on_record, from, store, &concerned(db, &id, store).await?)?;
    drop_admitted(db, &id).await?;
    know(db, &id, store).await?;
    set_state(db, store, StoreState::Filling).await?;
    changes::record(db, Changed::Nodes).await
}

/// Whichever store was admitted is merely reported again. Returns the revision.
pub(super) async fn give_up(db: &mut Db, id: &NodeId) -> Result<u64, StoreError> {
    drop_admitted(db, id).await?;
    changes::record(db, Changed::Nodes).await
}

pub(super) async fn replace(db: &mut Db, id: NodeId, from: StoreId, to: StoreId) -> Result<(), StoreError> {
    let on_record = on_record(db, &id).await?;
    if !stores::replaces(&id, on_record, from, to, &concerned(db, &id, to).await?)? {
        return Ok(());
    }
    put_on_record(db, &id, to).await?;
    know(db, &id, from).await?;
    set_state(db, from, StoreState::Retired).await?;
    set_state(db, to, StoreState::Reported).await?;
    changes::record(db, Changed::Nodes).await.map(drop)
}

/// A query for the known stores of a condition, those included that a program of the version before has put on record.
macro_rules! known_stores {
    ($of:literal) => {
        concat!(
            "SELECT store_id, node_id, state, commit_number, keys_count FROM (
                 SELECT store_id, node_id, state, commit_number, keys_count FROM stores
                 UNION ALL
                 SELECT store_id, node_id, 'reported', 0, 0 FROM storage_nodes AS nodes
                     WHERE store_id IS NOT NULL
                         AND NOT EXISTS (SELECT 1 FROM stores WHERE stores.store_id = nodes.store_id)
             ) AS known WHERE ",
            $of
        )
    };
}

pub(super) async fn all(db: &mut Db) -> Result<Vec<StoreOnRecord>, StoreError> {
    db.rows(known_stores!("1 = 1"), &[]).await?.iter().map(store).collect()
}

/// The stores that the rules look at when `node` reports or admits store `of`: its own, and that one.
async fn concerned(db: &mut Db, node: &NodeId, of: StoreId) -> Result<Vec<StoreOnRecord>, StoreError> {
    let sql = known_stores!("node_id = $1 OR store_id = $2");
    db.rows(sql, &[Value::Text(node.as_str()), Value::Bytes(&of.0)]).await?.iter().map(store).collect()
}

/// Never lowers a commit number. One statement for each store, without a lock: nothing is decided from what they read.
pub(super) async fn note_commits(db: &mut Db, commits: Vec<Commit>) -> Result<(), StoreError> {
    for Commit { store, commit, keys } in commits {
        db.execute(
            "UPDATE stores SET commit_number = CASE WHEN commit_number < $2 THEN $2 ELSE commit_number END,
                 keys_count = COALESCE($3, keys_count)
             WHERE store_id = $1",
            &[Value::Bytes(&store.0), Value::Number(commit), Value::MaybeNumber(keys)],
        )
        .await?;
    }
    Ok(())
}

pub(super) async fn forget_commits(db: &mut Db) -> Result<(), StoreError> {
    db.execute("UPDATE stores SET commit_number = 0", &[]).await?;
    db.execute("UPDATE stores SET state = 'reported' WHERE state = 'set-back'", &[]).await?;
    changes::record(db, Changed::Nodes).await.map(drop)
}

async fn on_record(db: &mut Db, id: &NodeId) -> Result<Option<StoreId>, StoreError> {
    let row = db.row("SELECT store_id FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    store_id(&row.ok_or_else(|| rules::no_node(id))?)
}

async fn put_on_record(db: &mut Db, id: &NodeId, store: StoreId) -> Result<(), StoreError> {
    let values = [Value::Text(id.as_str()), Value::Bytes(&store.0)];
    db.execute("UPDATE storage_nodes SET store_id = $2 WHERE node_id = $1", &values).await.map(drop)
}

/// No store that a node has reported is used again.
pub(super) async fn retire(db: &mut Db, id: &NodeId) -> Result<(), StoreError> {
    if let Some(on_record) = on_record(db, id).await? {
        know(db, id, on_record).await?;
    }
    let sql = "UPDATE stores SET state = 'retired' WHERE node_id = $1";
    db.execute(sql, &[Value::Text(id.as_str())]).await.map(drop)
}

/// Makes a row for a store that has none.
async fn know(db: &mut Db, id: &NodeId, store: StoreId) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO stores (store_id, node_id, state) VALUES ($1, $2, 'reported') ON CONFLICT (store_id) DO NOTHING",
        &[Value::Bytes(&store.0), Value::Text(id.as_str())],
    )
    .await
    .map(drop)
}

async fn set_state(db: &mut Db, store: StoreId, state: StoreState) -> Result<(), StoreError> {
    let values = [Value::Bytes(&store.0), Value::Text(state.as_str())];
    db.execute("UPDATE stores SET state = $2 WHERE store_id = $1", &values).await.map(drop)
}

/// The store that was admitted for a node, if any, is merely reported again.
async fn drop_admitted(db: &mut Db, id: &NodeId) -> Result<(), StoreError> {
    let sql = "UPDATE stores SET state = 'reported' WHERE node_id = $1 AND state = 'filling'";
    db.execute(sql, &[Value::Text(id.as_str())]).await.map(drop)
}

fn store(row: &Row) -> Result<StoreOnRecord, StoreError> {
    Ok(StoreOnRecord {
        store: StoreId(row.exactly("store_id")?),
        node: row.spelled("node_id", |text| NodeId::new(text).ok())?,
        state: row.spelled("state", StoreState::parse)?,
        commit: row.number("commit_number")?,
        keys: row.number("keys_count")?,
    })
}

/// The store on record of a row of `storage_nodes`.
pub(super) fn store_id(row: &Row) -> Result<Option<StoreId>, StoreError> {
    let stored = row.maybe_bytes("store_id")?;
    stored.map(|id| StoreId::from_slice(&id).ok_or_else(|| damaged("store_id", &id.len()))).transpose()
}
