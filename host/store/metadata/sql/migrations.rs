//! Placement changes on record.

use std::collections::BTreeSet;

use witan_kernel::name::{NodeId, StoreId, TenantId, Zone};
use witan_kernel::port::moves::replaces::PlannedStore;
use witan_kernel::port::moves::{self, OnRecord, Plan, Planned};
use witan_kernel::port::{
    Answer, BindingChange, Changed, Leftover, MIGRATIONS, Migration, MigrationProgress, MigrationStatus,
    MigrationStore, MoveTenant, NodeStatus, Owing, PlacementChange, Published, StorageNode, StoreError, rules,
};
use witan_kernel::ring::Member;
use witan_kernel::tenant::Tenant;

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata, bindings, changes, leftovers, placement, rings, stores, tenants};

impl<D: Driver> MigrationStore for SqlMetadata<D> {
    fn change_placement(&self, change: PlacementChange, now_ms: u64) -> Answer<Migration> {
        self.change(move |db| Box::pin(change_placement(db, change, now_ms)))
    }

    fn swap_hook(&self, record: BindingChange, change: PlacementChange, now_ms: u64) -> Answer<(u64, Migration)> {
        self.change(move |db| {
            Box::pin(async move {
                let version = bindings::save(db, BindingChange { fenced: false, ..record }).await?;
                Ok((version, change_placement(db, change, now_ms).await?))
            })
        })
    }

    fn migration(&self, number: u64) -> Answer<Migration> {
        self.read(move |db| Box::pin(get(db, number)))
    }

    fn migrations(&self, before: Option<u64>, limit: u32) -> Answer<Vec<Migration>> {
        self.read(move |db| Box::pin(list(db, before, rules::page(limit).into())))
    }

    fn note_migration(
        &self,
        number: u64,
        status: MigrationStatus,
        progress: MigrationProgress,
        now_ms: u64,
    ) -> Answer<()> {
        self.change(move |db| {
            Box::pin(async move {
                let noted = get(db, number).await?.noted(status, progress, now_ms);
                put(db, &noted).await
            })
        })
    }

    fn cancel_migration(&self, number: u64, now_ms: u64) -> Answer<Migration> {
        self.change(move |db| Box::pin(cancel(db, number, now_ms)))
    }

    fn move_tenant(&self, id: &TenantId, version: u64, step: MoveTenant, now_ms: u64) -> Answer<Published> {
        let id = id.clone();
        self.change(move |db| Box::pin(move_tenant(db, id, version, step, now_ms)))
    }

    fn leftovers(&self, tenant: Option<&TenantId>, after: Option<Owing>) -> Answer<Vec<Leftover>> {
        let tenant = tenant.cloned();
        self.read(move |db| Box::pin(leftovers::page(db, tenant, after)))
    }

    fn leftover_cleaned(&self, tenant: &TenantId, node: &NodeId, epoch: u64) -> Answer<()> {
        let (tenant, node) = (tenant.clone(), node.clone());
        self.write(move |db| Box::pin(leftovers::cleaned(db, tenant, node, epoch)))
    }

    fn forget_rings(&self, _: u64) -> Answer<bool> {
        self.change(move |db| Box::pin(forget_rings(db)))
    }
}

async fn change_placement(db: &mut Db, change: PlacementChange, now_ms: u64) -> Result<Migration, StoreError> {
    let (placement, open) = (placement::placement(db).await?, open(db).await?);
    let (tenant, stores) = (tenant_of(db, &change).await?, stores::all(db).await?);
    let at = OnRecord { placement: &placement, stores: &stores, tenant: tenant.as_ref(), migrations: &open };
    let plan = match at.plan(change, now_ms)? {
        Planned::Known(known) => return Ok(*known),
        Planned::Write(plan) => *plan,
    };
    let number = carry_out(db, &plan, now_ms).await?;
    make_room(db).await?;
    let new = Migration { number, ..plan.migration };
    put(db, &new).await?;
    Ok(new)
}

/// Drops the oldest that have ended.
async fn make_room(db: &mut Db) -> Result<(), StoreError> {
    let on_record = db.one("SELECT COUNT(*) AS on_record FROM migrations", &[]).await?.number("on_record")?;
    let superfluous = moves::superfluous(on_record);
    if superfluous == 0 {
        return Ok(());
    }
    db.execute(
        "DELETE FROM migrations WHERE number IN
            (SELECT number FROM migrations WHERE status IN ('completed', 'cancelled', 'failed') ORDER BY number LIMIT $1)",
        &[Value::Number(superfluous as u64)],
    )
    .await
    .map(drop)
}

async fn cancel(db: &mut Db, number: u64, now_ms: u64) -> Result<Migration, StoreError> {
    let known = get(db, number).await?;
    let (placement, all) = (placement::placement(db).await?, list(db, None, MIGRATIONS as u64).await?);
    let (tenant, stores) = (tenant_of(db, &known.change).await?, stores::all(db).await?);
    let at = OnRecord { placement: &placement, stores: &stores, tenant: tenant.as_ref(), migrations: &all };
    let Some(plan) = at.plan_taking_back(&known, now_ms)? else { return Ok(known) };
    carry_out(db, &plan, now_ms).await?;
    put(db, &plan.migration).await?;
    Ok(plan.migration)
}

async fn tenant_of(db: &mut Db, change: &PlacementChange) -> Result<Option<Tenant>, StoreError> {
    match change.tenant() {
        Some(id) => tenants::living(db, id).await,
        None => Ok(None),
    }
}

/// Writes all of a plan but the record of the change itself. Returns the revision that does so.
async fn carry_out(db: &mut Db, plan: &Plan, now_ms: u64) -> Result<u64, StoreError> {
    if let Some((version, members)) = &plan.ring {
        let before = placement::placement(db).await?;
        if let Some(remaining) = plan.remaining(&before)
            && let Some(tenant) = tenants::with_more_replicas_than(db, remaining).await?
        {
            return Err(plan.too_few(remaining, &tenant.id));
        }
        if !rings::are_on_record(db).await? {
            for ring in &before.rings {
                rings::add(db, ring.version, &ring.members).await?;
            }
        }
        rings::add(db, *version, members).await?;
    }
    match &plan.store {
        Some(PlannedStore::Admit { node, from, to }) => return stores::admit(db, node.clone(), *from, *to).await,
        Some(PlannedStore::GiveUp(node)) => return stores::give_up(db, node).await,
        None => {}
    }
    if let Some(node) = &plan.node {
        placement::write_node(db, node, now_ms).await?;
    }
    if let Some(lost) = &plan.lost {
        stores::retire(db, lost).await?;
        leftovers::forget_of_node(db, lost).await?;
    }
    if let Some(tenant) = &plan.tenant {
        tenants::put(db, tenant.clone()).await?;
    }
    match plan.migration.change.tenant() {
        Some(tenant) => changes::record(db, Changed::Tenant(tenant.clone())).await,
        None => placement::changed(db).await,
    }
}

async fn move_tenant(
    db: &mut Db,
    id: TenantId,
    version: u64,
    step: MoveTenant,
    now_ms: u64,
) -> Result<Published, StoreError> {
    let before = tenants::living(db, &id).await?.ok_or_else(|| rules::no_tenant(&id))?;
    if before.version != version {
        return Err(rules::lost_update(&id, version, before.version));
    }
    if let MoveTenant::Prepare(to) = &step {
        moves::may_move(*to, &placement::placement(db).await?)?;
    }
    let epoch = changes::record(db, Changed::Tenant(id)).await?;
    let moved = before.moved(&step, epoch)?;
    for left in before.left_over(&step, epoch, now_ms) {
        leftovers::leave(db, &left).await?;
    }
    let tenant = tenants::put(db, Tenant { updated_at_ms: now_ms, ..moved }).await?;
    Ok(Published { tenant, epoch })
}

async fn forget_rings(db: &mut Db) -> Result<bool, StoreError> {
    let rows = db
        .rows(
            "SELECT ring FROM tenants WHERE deleted_at IS NULL
             UNION SELECT move_ring FROM tenants WHERE deleted_at IS NULL AND move_ring IS NOT NULL
             UNION SELECT from_ring FROM placement_leftovers
             UNION SELECT to_ring FROM placement_leftovers",
            &[],
        )
        .await?;
    let referred = rows.iter().map(|row| row.number("ring")).collect::<Result<BTreeSet<u64>, _>>()?;
    let (versions, nodes) = moves::forgotten(&placement::placement(db).await?, &referred);
    if versions.is_empty() && nodes.is_empty() {
        return Ok(false);
    }
    for version in versions {
        rings::forget(db, version).await?;
    }
    for node in &nodes {
        stores::retire(db, node).await?;
        placement::forget_node(db, node).await?;
    }
    placement::changed(db).await?;
    Ok(true)
}

/// A query for the placement changes of a condition.
macro_rules! migrations_where {
    ($condition:literal) => {
        concat!(
            "SELECT number, kind, node_id, host, port, virtual_nodes, lost, tenant_id, factor, ring, factor_before, status,
                cancel_requested, tenants_done, tenants_total, keys_done, keys_total, bytes_done, message, created_at,
                started_at, finished_at, zone, virtual_nodes_before, zone_before, store_before, store_after, generation
             FROM migrations WHERE ",
            $condition
        )
    };
}

async fn get(db: &mut Db, number: u64) -> Result<Migration, StoreError> {
    let row = db.row(migrations_where!("number = $1"), &[Value::Number(number)]).await?;
    migration(&row.ok_or_else(|| moves::no_migration(number))?)
}

/// Those that have not ended.
async fn open(db: &mut Db) -> Result<Vec<Migration>, StoreError> {
    let rows = db.rows(migrations_where!("status IN ('pending', 'in_progress') ORDER BY number"), &[]).await?;
    rows.iter().map(migration).collect()
}

/// The newest first.
async fn list(db: &mut Db, before: Option<u64>, limit: u64) -> Result<Vec<Migration>, StoreError> {
    let sql = migrations_where!("number < $1 ORDER BY number DESC LIMIT $2");
    let rows = db.rows(sql, &[Value::Number(before.unwrap_or(u64::MAX)), Value::Number(limit)]).await?;
    rows.iter().map(migration).collect()
}

const ADD_NODE: &str = "add_node";
const REMOVE_NODE: &str = "remove_node";
const UPDATE_NODE: &str = "update_node";
const REPLACE_STORE: &str = "replace_store";
const REPLICATION_FACTOR: &str = "replication_factor";
const ROUTING_HOOK: &str = "routing_hook";

/// What the columns of a change's kind have; NULL where it has none.
#[derive(Default)]
struct Columns<'a> {
    kind: &'static str,
    host: Option<&'a str>,
    port: Option<u64>,
    virtual_nodes: Option<u64>,
    zone: Option<&'a str>,
    lost: bool,
    stores: Option<(StoreId, StoreId)>,
    factor: Option<u64>,
    generation: Option<u64>,
}

fn columns(change: &PlacementChange) -> Columns<'_> {
    match change {
        PlacementChange::AddNode(node) => Columns {
            kind: ADD_NODE,
            host: Some(&node.host),
            port: Some(node.port.into()),
            virtual_nodes: Some(node.virtual_nodes.into()),
            zone: Some(node.zone.as_str()),
            ..Columns::default()
        },
        PlacementChange::RemoveNode { force, .. } => Columns { kind: REMOVE_NODE, lost: *force, ..Columns::default() },
        PlacementChange::UpdateNode { virtual_nodes, zone, .. } => Columns {
            kind: UPDATE_NODE,
            virtual_nodes: virtual_nodes.map(u64::from),
            zone: zone.as_ref().map(Zone::as_str),
            ..Columns::default()
        },
        PlacementChange::ReplaceStore { from, to, accept_loss, .. } => {
            Columns { kind: REPLACE_STORE, lost: *accept_loss, stores: Some((*from, *to)), ..Columns::default() }
        }
        PlacementChange::ReplicationFactor { to, .. } => {
            Columns { kind: REPLICATION_FACTOR, factor: Some(u64::from(*to)), ..Columns::default() }
        }
        PlacementChange::Generation { generation, .. } => {
            Columns { kind: ROUTING_HOOK, generation: Some(u64::from(*generation)), ..Columns::default() }
        }
    }
}

async fn put(db: &mut Db, of: &Migration) -> Result<(), StoreError> {
    let Columns { kind, host, port, virtual_nodes, zone, lost, stores, factor, generation } = columns(&of.change);
    let (before, after) = stores.unzip();
    let progress = &of.progress;
    db.execute(
        "INSERT INTO migrations
            (number, kind, node_id, host, port, virtual_nodes, lost, tenant_id, factor, ring, factor_before, status,
            cancel_requested, tenants_done, tenants_total, keys_done, keys_total, bytes_done, message, created_at,
            started_at, finished_at, zone, virtual_nodes_before, zone_before, store_before, store_after, generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
            $25, $26, $27, $28)
         ON CONFLICT (number) DO UPDATE SET status = $12, cancel_requested = $13, tenants_done = $14, tenants_total = $15,
            keys_done = $16, keys_total = $17, bytes_done = $18, message = $19, started_at = $21, finished_at = $22",
        &[
            Value::Number(of.number),
            Value::Text(kind),
            Value::MaybeText(of.change.node().map(NodeId::as_str)),
            Value::MaybeText(host),
            Value::MaybeNumber(port),
            Value::MaybeNumber(virtual_nodes),
            Value::Flag(lost),
            Value::MaybeText(of.change.tenant().map(TenantId::as_str)),
            Value::MaybeNumber(factor),
            Value::Number(of.ring),
            Value::Number(of.before.into()),
            Value::Text(of.status.as_str()),
            Value::Flag(of.cancel_requested),
            Value::Number(progress.tenants_done),
            Value::Number(progress.tenants_total),
            Value::Number(progress.keys_done),
            Value::Number(progress.keys_total),
            Value::Number(progress.bytes_done),
            Value::Text(&progress.message),
            Value::Number(of.created_at_ms),
            Value::MaybeNumber(of.started_at_ms),
            Value::MaybeNumber(of.finished_at_ms),
            Value::MaybeText(zone),
            Value::MaybeNumber(of.was.as_ref().map(|was| was.virtual_nodes.into())),
            Value::MaybeText(of.was.as_ref().map(|was| was.zone.as_str())),
            Value::MaybeBytes(before.as_ref().map(|store| &store.0[..])),
            Value::MaybeBytes(after.as_ref().map(|store| &store.0[..])),
            Value::MaybeNumber(generation),
        ],
    )
    .await
    .map(drop)
}

fn change(row: &Row) -> Result<PlacementChange, StoreError> {
    let node = || row.spelled("node_id", |text| NodeId::new(text).ok());
    match row.text("kind")?.as_str() {
        ADD_NODE => Ok(PlacementChange::AddNode(StorageNode {
            id: node()?,
            host: row.text("host")?,
            port: row.number("port")?,
            virtual_nodes: row.number("virtual_nodes")?,
            status: NodeStatus::Active,
            // A change of before there were zones has none.
            zone: zone(row, "zone")?.unwrap_or_default(),
        })),
        UPDATE_NODE => Ok(PlacementChange::UpdateNode {
            node: node()?,
            virtual_nodes: row.maybe_number("virtual_nodes")?,
            zone: zone(row, "zone")?,
        }),
        REMOVE_NODE => Ok(PlacementChange::RemoveNode { node: node()?, force: row.flag("lost")? }),
        REPLACE_STORE => Ok(PlacementChange::ReplaceStore {
            node: node()?,
            from: StoreId(row.exactly("store_before")?),
            to: StoreId(row.exactly("store_after")?),
            accept_loss: row.flag("lost")?,
        }),
        REPLICATION_FACTOR => Ok(PlacementChange::ReplicationFactor {
            tenant: row.spelled("tenant_id", |text| TenantId::new(text).ok())?,
            to: row.number("factor")?,
        }),
        ROUTING_HOOK => Ok(PlacementChange::Generation {
            tenant: row.spelled("tenant_id", |text| TenantId::new(text).ok())?,
            generation: row.number("generation")?,
        }),
        other => Err(damaged("kind", &other)),
    }
}

fn zone(row: &Row, column: &'static str) -> Result<Option<Zone>, StoreError> {
    let name = row.maybe_text(column)?;
    name.map(|name| Zone::new(&name).map_err(|_| damaged(column, &name))).transpose()
}

/// What a node was in the ring before an update.
fn was(row: &Row, change: &PlacementChange) -> Result<Option<Member>, StoreError> {
    let PlacementChange::UpdateNode { node, .. } = change else { return Ok(None) };
    Ok(Some(Member {
        node: node.clone(),
        virtual_nodes: row.number("virtual_nodes_before")?,
        zone: row.spelled("zone_before", |text| Zone::new(text).ok())?,
    }))
}

fn migration(row: &Row) -> Result<Migration, StoreError> {
    let change = change(row)?;
    Ok(Migration {
        number: row.number("number")?,
        was: was(row, &change)?,
        change,
        ring: row.number("ring")?,
        before: row.number("factor_before")?,
        status: row.spelled("status", MigrationStatus::parse)?,
        cancel_requested: row.flag("cancel_requested")?,
        progress: MigrationProgress {
            tenants_done: row.number("tenants_done")?,
            tenants_total: row.number("tenants_total")?,
            keys_done: row.number("keys_done")?,
            keys_total: row.number("keys_total")?,
            bytes_done: row.number("bytes_done")?,
            message: row.text("message")?,
        },
        created_at_ms: row.number("created_at")?,
        started_at_ms: row.maybe_number("started_at")?,
        finished_at_ms: row.maybe_number("finished_at")?,
    })
}
