//! Rows of tenants on nodes that hold no replica of them any longer.

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::placement::Placed;
use witan_kernel::port::{LEFTOVERS, Leftover, Owing, StoreError, StoreState, moves};

use super::db::{Db, Value};
use super::row::Row;

/// Keeps a leftover, in place of one of before that is [the same](Leftover::is_same), if its node may ever clean it: it is on record, and
/// its store is not retired.
pub(super) async fn leave(db: &mut Db, left: &Leftover) -> Result<(), StoreError> {
    let (tenant, node) = (Value::Text(left.tenant.as_str()), Value::Text(left.node.as_str()));
    let placed =
        |placed: Placed| [placed.ring, placed.replication_factor.into(), placed.generation.into()].map(Value::Number);
    let ([from_ring, from_factor, from_generation], [to_ring, to_factor, to_generation]) =
        (placed(left.from), placed(left.to));
    let hand_over = Value::Flag(left.hand_over);
    let same = [tenant, node, from_ring, from_factor, to_ring, to_factor, hand_over, from_generation, to_generation];
    db.execute(
        "DELETE FROM placement_leftovers WHERE tenant_id = $1 AND node_id = $2 AND from_ring = $3 AND from_factor = $4
             AND to_ring = $5 AND to_factor = $6 AND hand_over = $7 AND from_generation = $8 AND to_generation = $9",
        &same,
    )
    .await?;
    let [_, _, others @ ..] = same;
    let (epoch, created) = (Value::Number(left.epoch), Value::Number(left.created_at_ms));
    let mut values = vec![tenant, node];
    values.extend(others);
    values.extend([epoch, created, Value::Text(StoreState::Retired.as_str())]);
    db.execute(
        "INSERT INTO placement_leftovers
            (tenant_id, node_id, from_ring, from_factor, to_ring, to_factor, hand_over, from_generation, to_generation, epoch,
            created_at)
         SELECT CAST($1 AS TEXT), node_id, CAST($3 AS BIGINT), CAST($4 AS BIGINT), CAST($5 AS BIGINT), CAST($6 AS BIGINT), $7,
            CAST($8 AS BIGINT), CAST($9 AS BIGINT), CAST($10 AS BIGINT), CAST($11 AS BIGINT)
         FROM storage_nodes WHERE node_id = $2 AND NOT EXISTS
            (SELECT 1 FROM stores WHERE stores.store_id = storage_nodes.store_id AND stores.state = $12)",
        &values,
    )
    .await
    .map(drop)
}

pub(super) async fn page(
    db: &mut Db,
    tenant: Option<TenantId>,
    after: Option<Owing>,
) -> Result<Vec<Leftover>, StoreError> {
    let (of, all) = (tenant.as_ref().map_or("", TenantId::as_str), u64::from(tenant.is_none()));
    // '' sorts before every id, and is none.
    let (after, node) = after.as_ref().map_or(("", ""), |(tenant, node)| (tenant.as_str(), node.as_str()));
    let rows = db
        .rows(
            "SELECT tenant_id, node_id, epoch, from_ring, from_factor, to_ring, to_factor, hand_over, created_at,
                from_generation, to_generation
             FROM placement_leftovers WHERE (tenant_id = $1 OR $2 = 1)
                 AND (tenant_id > $4 OR tenant_id = $4 AND node_id > $5)
             ORDER BY tenant_id, node_id, epoch LIMIT $3",
            &[
                Value::Text(of),
                Value::Number(all),
                Value::Number(LEFTOVERS as u64 + 1),
                Value::Text(after),
                Value::Text(node),
            ],
        )
        .await?;
    Ok(moves::leftovers(rows.iter().map(leftover).collect::<Result<_, _>>()?))
}

pub(super) async fn cleaned(db: &mut Db, tenant: TenantId, node: NodeId, epoch: u64) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM placement_leftovers WHERE tenant_id = $1 AND node_id = $2 AND epoch = $3",
        &[Value::Text(tenant.as_str()), Value::Text(node.as_str()), Value::Number(epoch)],
    )
    .await
    .map(drop)
}

pub(super) async fn forget_of_tenant(db: &mut Db, tenant: &TenantId) -> Result<(), StoreError> {
    let sql = "DELETE FROM placement_leftovers WHERE tenant_id = $1";
    db.execute(sql, &[Value::Text(tenant.as_str())]).await.map(drop)
}

pub(super) async fn forget_of_node(db: &mut Db, node: &NodeId) -> Result<(), StoreError> {
    let sql = "DELETE FROM placement_leftovers WHERE node_id = $1";
    db.execute(sql, &[Value::Text(node.as_str())]).await.map(drop)
}

fn leftover(row: &Row) -> Result<Leftover, StoreError> {
    let placed = |ring, factor, generation| {
        Ok::<_, StoreError>(Placed {
            ring: row.number(ring)?,
            replication_factor: row.number(factor)?,
            generation: row.number(generation)?,
        })
    };
    Ok(Leftover {
        tenant: row.spelled("tenant_id", |text| TenantId::new(text).ok())?,
        node: row.spelled("node_id", |text| NodeId::new(text).ok())?,
        from: placed("from_ring", "from_factor", "from_generation")?,
        to: placed("to_ring", "to_factor", "to_generation")?,
        hand_over: row.flag("hand_over")?,
        epoch: row.number("epoch")?,
        created_at_ms: row.number("created_at")?,
    })
}
