//! Rows of synced objects. Their statements are built from the declarations.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use super::{Row, Statement, Value, batch, ledger, queue};
use crate::{
    entity::USER,
    model::{Anonymized, Entity, Field, FieldSet, Holds, Kinds, Object, Profile, Value as Cell},
    store::{self, Result},
};

/// The statements for one kind and one allow-list.
pub(in crate::store) struct Statements {
    entity: &'static Entity,
    pub(in crate::store) load: Statement,
    insert: Statement,
    pub(in crate::store) update: Statement,
    /// Checks whether a trigger of the application changed the `clerk_id` of rows that were just written. Only SQLite needs it,
    /// because its RETURNING shows the values before the trigger; PostgreSQL's shows the final ones.
    pub(super) moved: Statement,
    /// Live rows with the same values in the unique columns.
    pub(super) rivals: Statement,
    /// Ids of objects whose erasure was never requested and that clerk-sync wrote before a given time or never.
    pub(in crate::store) standing: Statement,
    pub(in crate::store) count_standing: Statement,
    /// When a row was last written.
    pub(super) newest: Statement,
    pub(super) one: Statement,
    pub(super) these: Statement,
    pub(in crate::store) page: Statement,
    /// As `page`, for rows with this value in this column.
    pub(in crate::store) pages: Vec<(Field, Statement)>,
    /// Records deliveries, and locks, reads and loads the objects that they are about. Empty if the database runs these steps
    /// separately.
    pub(super) open: Statement,
    /// Writes registers, rows and audit lines. Empty where `open` is.
    pub(super) close: Statement,
    loaded: Vec<Field>,
    written: Vec<Field>,
}

/// The statements built so far. A process has one allow-list, from which a field that makes an update fail is sometimes left
/// out.
static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);

type Made = HashMap<(&'static str, FieldSet), Arc<Statements>>;

const PREFERENCES: &str = "u.preferences{postgres ::text}";

impl Statements {
    /// The statements of this kind for these fields.
    pub(in crate::store) fn of(entity: &'static Entity, fields: FieldSet) -> Arc<Self> {
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.entry((entity.table, fields)).or_insert_with(|| Arc::new(Self::new(entity, fields)));
        Arc::clone(made)
    }

    fn new(entity: &'static Entity, fields: FieldSet) -> Self {
        let table = entity.table;
        let written: Vec<Field> = fields.of(entity).collect();
        let telling: FieldSet = entity.telling().collect();
        let loaded: Vec<Field> =
            entity.fields().filter(|field| telling.contains(*field) || written.contains(field)).collect();
        let read = read_of(&loaded);
        let [names, given, set, types] = written_of(&written);
        let rows = format!(
            "{{batch $1 AS n: clerk_id text, {types}created_at time, updated_at time, synced_at time}}"
        );
        let is_standing = is_standing(entity);
        let seen = format!("{read}, u.id, {}", if entity.has_preferences { PREFERENCES } else { "NULL" });
        let row = format!("SELECT {seen} FROM {table} AS u");
        let page = |hint: &str, condition: &str, order: &str| {
            Statement::made(format!(
                "{row}{hint} WHERE {condition} AND u.deleted_at IS NULL ORDER BY {order} LIMIT $2"
            ))
        };
        let by_email = entity.fields().filter(|field| field.anonymized == Anonymized::Address);
        let by_email = by_email.map(|field| {
            // Avoid the order of the primary key: the planner would scan its index for the address.
            let condition = format!(
                "{{postgres|sqlite lower(u.{0})}}{{mysql u.live_{0}}} = lower($3) AND {{sqlite +}}u.id > $1",
                field.name()
            );
            (field, page("", &condition, "{postgres u.id + 0}{sqlite +u.id}{mysql u.id}"))
        });
        let by_parent = entity.parents().map(|(field, _)| {
            // Only the index on the parent has this order. With the order of the primary key, PostgreSQL would scan its index
            // for a parent with many children, and continue after the last child to the end of the table.
            let condition =
                "{postgres (u.F, u.id) > ($3, $1) AND u.F <= $3}{sqlite|mysql u.F = $3 AND u.id > $1}";
            let of_field = |text: &str| text.replace("u.F", &format!("u.{}", field.name()));
            let hint = format!("{{mysql  FORCE INDEX ({table}_{})}}", field.name());
            (field, page(&hint, &of_field(condition), &of_field("{postgres u.F, }u.id")))
        });
        let found = found_of(table);
        let open = opening_of(entity, &read);
        let insert = format!(
            "INSERT INTO {table} (clerk_id, {names}created_at, updated_at, synced_at)
                 SELECT n.clerk_id, {given}n.created_at, n.updated_at, n.synced_at FROM {rows}
                 WHERE true
                 {{postgres|sqlite ON CONFLICT (clerk_id) DO NOTHING}}
                 -- A trigger may have changed the id of the row.
                 {{returning clerk_id}}{{mysql ;
                 {found}}}"
        );
        let update = format!(
                "UPDATE {table} AS u
                 -- Some events do not contain the time of creation.
                 SET {set}{{mysql u.}}created_at = coalesce(n.created_at, u.created_at), {{mysql u.}}updated_at = n.updated_at,
                     {{mysql u.}}synced_at = n.synced_at
                 {{from {rows}}}
                 WHERE u.clerk_id = n.clerk_id
                 {{returning {{postgres u.}}clerk_id}}{{mysql ;
                 {found}}}"
            );
        Self {
            entity,
            load: Statement::made(format!(
                "SELECT {read}
                 FROM {{batch $1 AS n: clerk_id text}}
                 {{lookup {table} AS u WHERE u.clerk_id = n.clerk_id}}"
            )),
            open: Statement::made(open),
            close: Statement::made(closing_of(&insert, &update)),
            insert: Statement::made(insert),
            update: Statement::made(update),
            moved: Statement::made(moved_of(table)),
            rivals: Statement::made(rivals_of(entity)),
            standing: Statement::made(format!(
                "SELECT u.clerk_id FROM {table} AS u
                 -- Rows that another program inserted have no such time.
                 WHERE u.clerk_id > $1 AND coalesce(u.synced_at < $2, true) AND {is_standing}
                 ORDER BY u.clerk_id
                 LIMIT $3"
            )),
            count_standing: Statement::made(format!("SELECT count(*) FROM {table} AS u WHERE {is_standing}")),
            newest: Statement::made(format!(
                "SELECT u.synced_at FROM {table} AS u WHERE u.deleted_at IS NULL AND u.synced_at IS NOT NULL
                 ORDER BY u.synced_at DESC LIMIT 1"
            )),
            these: Statement::made(format!(
                "SELECT {seen} FROM {{batch $1 AS n: clerk_id text}}
                 {{lookup {table} AS u WHERE u.clerk_id = n.clerk_id AND u.deleted_at IS NULL}}"
            )),
            one: Statement::made(format!("{row} WHERE u.clerk_id = $1")),
            page: page("", "u.id > $1", "u.id"),
            pages: by_email.chain(by_parent).collect(),
            loaded,
            written,
        }
    }

    /// All statements, by name.
    #[cfg(test)]
    pub(super) fn named(&self) -> Vec<(String, &Statement)> {
        let named = [
            ("LOAD", &self.load),
            ("OPEN", &self.open),
            ("CLOSE", &self.close),
            ("INSERT", &self.insert),
            ("UPDATE", &self.update),
            ("MOVED", &self.moved),
            ("RIVALS", &self.rivals),
            ("STANDING", &self.standing),
            ("COUNT_STANDING", &self.count_standing),
            ("NEWEST", &self.newest),
            ("THESE", &self.these),
            ("ONE", &self.one),
            ("PAGE", &self.page),
        ];
        let pages = self.pages.iter().map(|(field, page)| (format!("PAGE of {}", field.name()), page));
        named.into_iter().map(|(name, statement)| (name.to_owned(), statement)).chain(pages).collect()
    }

    /// The statement that inserts or updates rows.
    pub(super) fn that(&self, how: Write) -> &Statement {
        match how {
            Write::Insert => &self.insert,
            Write::Update => &self.update,
        }
    }

    /// An object, from the columns in the order of `load`.
    pub(super) fn object(&self, row: &Row) -> Result<Object> {
        self.object_from(row, 0)
    }

    /// An object, from the columns that begin at this one.
    pub(super) fn object_from(&self, row: &Row, first: usize) -> Result<Object> {
        let mut profile = Profile::default();
        for (field, column) in self.loaded.iter().zip(first + 1..) {
            let cell = match field.holds {
                Holds::Text => row.maybe(column)?.map(Cell::Text),
                Holds::Json => row.maybe(column)?.map(Cell::Json),
                Holds::Int => row.maybe(column)?.map(Cell::Int),
                Holds::Bool => row.maybe(column)?.map(Cell::Bool),
                Holds::Time => row.maybe(column)?.map(Cell::Time),
            };
            profile.set(*field, cell.unwrap_or_default());
        }
        let times = first + self.loaded.len() + 1;
        // Any value counts as a mark of deletion, even an unreadable one.
        let is_marked = !row.is_null(times + 3)?;
        Ok(Object {
            clerk_id: row.id_of(self.entity, first)?,
            profile,
            created_at: row.maybe(times)?,
            updated_at: row.maybe(times + 1)?.unwrap_or_default(),
            synced_at: row.maybe(times + 2)?.unwrap_or_default(),
            deleted_at: if is_marked { Some(row.maybe(times + 3)?.unwrap_or_default()) } else { None },
        })
    }

    /// An object with the columns for readers, in the order of `page`.
    pub(super) fn seen(&self, row: &Row) -> Result<store::Row> {
        let behind = self.loaded.len() + 5;
        let object = self.object(row)?;
        Ok(store::Row { object, id: row.get(behind)?, preferences: row.maybe(behind + 1)? })
    }

    /// The batch for a statement that writes rows.
    pub(super) fn rows<'a>(&self, objects: &'a [Object]) -> Value<'a> {
        let mut rows = batch(objects).text(|object| object.clerk_id.as_str());
        for field in self.written.iter().copied() {
            rows = match field.holds {
                Holds::Text => rows.text(move |object| object.profile[field].text()),
                Holds::Json => rows.text(move |object| object.profile[field].json()),
                Holds::Int => rows.maybe_int(move |object| object.profile[field].int()),
                Holds::Bool => rows.bool(move |object| object.profile[field].bool()),
                Holds::Time => rows.time(move |object| object.profile[field].time()),
            };
        }
        rows.time(|object| object.created_at)
            .time(Object::known_updated_at)
            .time(|object| object.synced_at)
            .into()
    }
}

/// The columns of row `u` that are loaded.
fn read_of(loaded: &[Field]) -> String {
    let columns = loaded.iter().map(|field| {
        let cast = if field.holds == Holds::Json { "{postgres ::text}" } else { "" };
        format!("u.{}{cast}, ", column(*field))
    });
    let columns: String = columns.collect();
    format!("u.clerk_id, {columns}u.created_at, u.updated_at, u.synced_at, u.deleted_at")
}

/// The parts of statements that write these columns: names, values, assignments and types.
fn written_of(written: &[Field]) -> [String; 4] {
    let [mut names, mut given, mut set, mut types] = [const { String::new() }; 4];
    for field in written {
        let name = column(*field);
        let (cast, kind) = match field.holds {
            Holds::Text => ("", "text"),
            Holds::Json => ("{postgres ::jsonb}", "text"),
            Holds::Int => ("", "bigint"),
            Holds::Bool => ("", "boolean"),
            Holds::Time => ("", "time"),
        };
        let _ = write!(names, "{name}, ");
        let _ = write!(given, "n.{name}{cast}, ");
        let _ = write!(set, "{{mysql u.}}{name} = n.{name}{cast}, ");
        let _ = write!(types, "{name} {kind}, ");
    }
    [names, given, set, types]
}

/// Records deliveries, then locks the registers of objects of one kind and loads the rows of those with a newer version. The
/// rows get the lock of an update. Without it, the statement would not see what another transaction wrote while this one waited
/// for the register.
fn opening_of(entity: &Entity, read: &str) -> String {
    let nothing = vec!["NULL"; read.split(", ").count()].join(", ");
    format!(
        "{{postgres {recorded}
        SELECT svix_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {nothing} FROM recorded
        UNION ALL
        SELECT NULL, n.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since, e.parts_digest, {read}
        FROM {{batch $2 AS n: clerk_id text, version bigint, event_at bigint, tie text}}
        LEFT JOIN LATERAL (
            SELECT * FROM entity_versions AS e WHERE e.kind = '{kind}' AND e.clerk_id = n.clerk_id FOR UPDATE
        ) AS e ON true
        LEFT JOIN LATERAL (
            SELECT * FROM {table} AS u
            WHERE u.clerk_id = n.clerk_id AND (e.kind IS NULL
                OR NOT e.deleted AND (e.version, e.event_at, e.tie) < (n.version, n.event_at, n.tie COLLATE \"C\"))
            FOR NO KEY UPDATE
        ) AS u ON true}}",
        recorded = queue::RECORDED_WITH,
        kind = entity.kind,
        table = entity.table,
    )
}

/// Writes registers, new rows, changed rows, audit lines with their actors, and outcomes.
fn closing_of(insert: &str, update: &str) -> String {
    let given = |text: &str, number: u8| text.replace("{batch $1", &format!("{{batch ${number}"));
    format!(
        "{{postgres WITH advanced (kind, clerk_id, new) AS ({advance}),
        inserted AS ({insert}),
        updated AS ({update}),
        lines (id, svix_id, clerk_id) AS ({audit}),
        actors AS (
            INSERT INTO audit_actors (audit_id, ip, user_agent)
            -- Ids increase in the order of the lines. Joining lines to their actors would take time that grows with the square of the batch.
            SELECT a.id, a.ip, a.user_agent
            FROM unnest(ARRAY(SELECT id FROM lines ORDER BY id), $5::text[], $6::text[]) AS a (id, ip, user_agent)
            WHERE a.ip IS NOT NULL OR a.user_agent IS NOT NULL
        ),
        settled AS (
            UPDATE processed_webhooks AS p SET outcome = n.outcome {{from {{batch $7 AS n: svix_id text, outcome text}}}}
            WHERE p.svix_id = n.svix_id
        )
        -- Fails unless exactly the expected rows were written.
        SELECT 1 / CAST(
            (SELECT count(*) = cardinality($1) AND count(*) FILTER (WHERE new) = $8 FROM advanced)
            AND (SELECT count(*) = cardinality($2) AND bool_and(clerk_id = ANY ($2)) IS NOT FALSE FROM inserted)
            AND (SELECT count(*) = cardinality($3) AND bool_and(clerk_id = ANY ($3)) IS NOT FALSE FROM updated)
            AND (SELECT count(*) = cardinality($4) FROM lines)
        AS integer)}}",
        advance = given(ledger::ADVANCE.text(), 1),
        insert = given(insert, 2),
        update = given(update, 3),
        audit = given(ledger::AUDIT.text(), 4),
    )
}

/// Column names that are reserved words of SQL.
const RESERVED: [&str; 2] = ["interval", "key"];

/// The name of a column as SQL needs it.
pub(in crate::store) fn column(field: Field) -> String {
    let name = field.name();
    if RESERVED.contains(&name) { format!("\"{name}\"") } else { name.to_owned() }
}

/// The value of a field of row `u` after anonymisation.
pub(in crate::store) fn anonymous(field: Field) -> String {
    match field.anonymized {
        Anonymized::Kept => format!("u.{}", column(field)),
        Anonymized::Null => "NULL".to_owned(),
        Anonymized::Text(text) => format!("'{text}'"),
        Anonymized::Address => "'deleted-' || u.id || '@anonymized.local'".to_owned(),
    }
}

/// The items of `SET` that anonymise the fields of row `u`.
pub(in crate::store) fn anonymizing(entity: &'static Entity) -> impl Iterator<Item = String> {
    let changed = entity.fields().filter(|field| field.anonymized != Anonymized::Kept);
    changed.map(|field| format!("{} = {}", column(field), anonymous(field)))
}

/// Groups items by kind. They must be sorted by kind.
pub(in crate::store) fn by_kind<T>(
    items: &[T],
    entity: fn(&T) -> &'static Entity,
) -> impl Iterator<Item = (&'static Entity, &[T])> {
    items.chunk_by(move |one, other| entity(one) == entity(other)).map(move |part| (entity(&part[0]), part))
}

/// The condition that an object's erasure was never requested.
fn is_standing(entity: &Entity) -> String {
    format!(
        "NOT EXISTS (
                 SELECT 1 FROM entity_versions AS e
                 WHERE e.kind = '{}' AND e.clerk_id = u.clerk_id AND (e.deleted OR e.held_until IS NOT NULL)
             )",
        entity.kind
    )
}

/// For MySQL and MariaDB: the rows that a statement has just written, with an empty id where a trigger has changed it. It looks
/// for triggers only if a row is missing, because that reads files.
fn found_of(table: &str) -> String {
    format!(
        "SELECT w.clerk_id FROM (
                     SELECT coalesce(u.clerk_id, CASE WHEN EXISTS (
                         SELECT 1 FROM information_schema.triggers AS t
                         WHERE t.event_object_schema = database() AND t.event_object_table = '{table}' AND u.clerk_id IS NULL
                     ) THEN '' END) AS clerk_id
                     FROM {{batch $1 AS n: clerk_id text}} LEFT JOIN {table} AS u ON u.clerk_id = n.clerk_id
                 ) AS w
                 WHERE w.clerk_id IS NOT NULL"
    )
}

fn moved_of(table: &str) -> String {
    format!(
        "{{sqlite SELECT 1
                 WHERE EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = '{table}')
                   AND EXISTS (
                       SELECT 1 FROM {{batch $1 AS n: clerk_id text}}
                       WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE clerk_id = n.clerk_id)
                   )}}"
    )
}

/// Finds the live rows that hold these values in the unique columns.
fn rivals_of(entity: &Entity) -> String {
    if entity.unique.is_empty() {
        return String::new();
    }
    let unique = |text: fn(&str) -> String, between: &str| {
        entity.unique.iter().map(|name| text(name)).collect::<Vec<_>>().join(between)
    };
    format!(
        "SELECT u.clerk_id FROM {{batch $1 AS n: {}}}
         {{lookup {} AS u WHERE {} AND u.deleted_at IS NULL}}",
        unique(|name| format!("{name} text"), ", "),
        entity.table,
        unique(|name| format!("u.{name} = n.{name}"), " AND ")
    )
}

/// The way in which rows are written.
#[derive(Clone, Copy)]
pub(super) enum Write {
    Insert,
    Update,
}

/// The statements that find objects by their parents and mark them as deleted.
pub(super) struct Children {
    pub(super) find: Statement,
    /// By the kind of the parents.
    pub(super) mark: Vec<(&'static Entity, &'static str, Statement)>,
}

/// The statements built so far, by the kinds of the database. A process has one such list.
static CHILDREN: LazyLock<Mutex<HashMap<Vec<&'static str>, Arc<Children>>>> = LazyLock::new(Mutex::default);

impl Children {
    pub(super) fn of(kinds: Kinds) -> Arc<Self> {
        let mut made = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
        let names = kinds.iter().map(|entity| entity.kind).collect();
        Arc::clone(made.entry(names).or_insert_with(|| Arc::new(Self::new(kinds))))
    }

    fn new(kinds: Kinds) -> Self {
        let columns = || {
            let parents =
                |child: &'static Entity| child.parents().map(move |(field, parent)| (child, field, parent));
            kinds.iter().copied().flat_map(parents)
        };
        // One search for each row: PostgreSQL would join the subquery of a `NOT EXISTS` and read all registers of the kind.
        let is_not_deleted = |kind: &str| {
            format!(
                "NOT coalesce((
                     SELECT e.deleted FROM entity_versions AS e WHERE e.kind = '{kind}' AND e.clerk_id = u.clerk_id
                 ), false)"
            )
        };
        let find = columns().map(|(child, field, parent)| {
            format!(
                "SELECT '{kind}' AS kind, u.clerk_id FROM {{batch $1 AS n: kind text, clerk_id text}}
                 {{lookup {table} AS u WHERE u.{field} = n.clerk_id}}
                 WHERE n.kind = '{parent}' AND {is_not_deleted}",
                kind = child.kind,
                table = child.table,
                field = field.name(),
                parent = parent.kind,
                is_not_deleted = is_not_deleted(child.kind),
            )
        });
        // Erasing a user also removes objects with that user's address, even if they were meant for another person.
        let addressed = kinds
            .iter()
            .filter(|_| kinds.contains(&&USER))
            .filter_map(|child| Some((child, child.address()?)));
        let addressed = addressed.map(|(child, field)| {
            format!(
                "SELECT '{kind}' AS kind, u.clerk_id FROM {{batch $1 AS n: kind text, clerk_id text}}
                 {{lookup users AS p WHERE p.clerk_id = n.clerk_id}}
                 {{lookup {table} AS u WHERE {{postgres|sqlite lower(u.{field})}}{{mysql u.{field}_folded}} = lower(p.email)}}
                 WHERE n.kind = 'user' AND {is_not_deleted}",
                kind = child.kind,
                table = child.table,
                field = field.name(),
                is_not_deleted = is_not_deleted(child.kind),
            )
        });
        let find: Vec<String> = find.chain(addressed).collect();
        let find = match &find[..] {
            [] => String::new(),
            find => format!("SELECT kind, clerk_id FROM ({}) AS c LIMIT $2", find.join(" UNION ALL ")),
        };
        let mark = columns().map(|(child, field, parent)| {
            let statement = Statement::made(format!(
                "UPDATE {table} SET deleted_at = $2
                 WHERE {field} {{in SELECT n.clerk_id FROM {{batch $1 AS n: clerk_id text}}}} AND deleted_at IS NULL
                 {{returning 1}}",
                table = child.table,
                field = field.name(),
            ));
            (parent, child.table, statement)
        });
        Self { find: Statement::made(find), mark: mark.collect() }
    }
}
