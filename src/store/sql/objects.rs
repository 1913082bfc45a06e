//! Rows of synced objects, by statements that are made from their declarations.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use super::{Row, Session, Statement, Value, batch, values};
use crate::{
    model::{Anonymized, ClerkId, Entity, Field, FieldSet, Holds, Profile, User, Value as Cell},
    store::{Result, StoreError, Trouble},
};

/// The statements of one kind and one allow-list.
pub(in crate::store) struct Statements {
    pub(in crate::store) load: Statement,
    insert: Statement,
    pub(in crate::store) update: Statement,
    loaded: Vec<Field>,
    written: Vec<Field>,
}

/// Those that were made. An allow-list is for the life of a process, less now and then a field that spoils an update.
static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);

type Made = HashMap<(&'static str, FieldSet), Arc<Statements>>;

impl Statements {
    /// The statements of this kind for these fields.
    pub(in crate::store) fn of(entity: &'static Entity, fields: FieldSet) -> Arc<Self> {
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.entry((entity.table, fields)).or_insert_with(|| Arc::new(Self::new(entity, fields)));
        Arc::clone(made)
    }

    fn new(entity: &'static Entity, fields: FieldSet) -> Self {
        let table = entity.table;
        let loaded: Vec<Field> =
            entity.fields().filter(|field| field.identifies || fields.contains(*field)).collect();
        let written: Vec<Field> = fields.of(entity).collect();
        let (mut read, mut names, mut given, mut set, mut types) =
            <(String, String, String, String, String)>::default();
        for field in &loaded {
            let _ = match field.holds {
                Holds::Json => write!(read, "{{postgres u.{0}::text}}{{sqlite u.{0}}}, ", field.name()),
                _ => write!(read, "u.{}, ", field.name()),
            };
        }
        for field in &written {
            let name = field.name();
            let (cast, kind) = match field.holds {
                Holds::Text => ("", "text"),
                Holds::Json => ("{postgres ::jsonb}", "text"),
                Holds::Bool => ("", "boolean"),
                Holds::Time => ("", "time"),
            };
            let _ = write!(names, "{name}, ");
            let _ = write!(given, "n.{name}{cast}, ");
            let _ = write!(set, "{name} = n.{name}{cast}, ");
            let _ = write!(types, "{name} {kind}, ");
        }
        let rows = format!(
            "{{batch $1 AS n: clerk_id text, {types}created_at time, updated_at time, synced_at time}}"
        );
        Self {
            load: Statement::made(format!(
                "SELECT u.clerk_id, {read}u.created_at, u.updated_at, u.synced_at, u.deleted_at
                 FROM {{batch $1 AS n: clerk_id text}}
                 {{lookup {table} AS u WHERE u.clerk_id = n.clerk_id}}"
            )),
            insert: Statement::made(format!(
                "INSERT INTO {table} (clerk_id, {names}created_at, updated_at, synced_at)
                 SELECT n.clerk_id, {given}n.created_at, n.updated_at, n.synced_at FROM {rows}
                 WHERE true
                 ON CONFLICT (clerk_id) DO NOTHING
                 -- A trigger may have changed whose row it is.
                 RETURNING clerk_id"
            )),
            update: Statement::made(format!(
                "UPDATE {table} AS u
                 -- Not every event tells when it was created.
                 SET {set}created_at = coalesce(n.created_at, u.created_at), updated_at = n.updated_at,
                     synced_at = n.synced_at
                 FROM {rows}
                 WHERE u.clerk_id = n.clerk_id
                 RETURNING {{postgres u.}}clerk_id"
            )),
            loaded,
            written,
        }
    }

    fn rows<'a>(&self, objects: &'a [User]) -> Value<'a> {
        let mut rows = batch(objects).text(|object| object.clerk_id.as_str());
        for field in self.written.iter().copied() {
            rows = match field.holds {
                Holds::Text => rows.text(move |object| object.profile[field].text()),
                Holds::Json => rows.text(move |object| object.profile[field].json()),
                Holds::Bool => rows.bool(move |object| object.profile[field].bool()),
                Holds::Time => rows.time(move |object| object.profile[field].time()),
            };
        }
        rows.time(|object| object.created_at)
            .time(User::known_updated_at)
            .time(|object| object.synced_at)
            .into()
    }
}

/// What a field of row `u` holds once it is anonymised.
pub(in crate::store) fn anonymous(field: Field) -> String {
    match field.anonymized {
        Anonymized::Null => "NULL".to_owned(),
        Anonymized::Text(text) => format!("'{text}'"),
        Anonymized::Address => "'deleted-' || u.id || '@anonymized.local'".to_owned(),
    }
}

/// What anonymises row `u`, as far as its fields go: a list for `SET`.
pub(in crate::store) fn anonymizing(entity: &'static Entity) -> String {
    let each = entity.fields().map(|field| format!("{} = {}", field.name(), anonymous(field)));
    each.collect::<Vec<_>>().join(", ")
}

/// The rows of these objects, with their columns of `fields` and those that tell who somebody is.
pub(in crate::store) async fn load(
    session: &mut dyn Session,
    entity: &'static Entity,
    ids: &[ClerkId],
    fields: FieldSet,
) -> Result<HashMap<ClerkId, User>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let statements = Statements::of(entity, fields);
    let rows = session.rows(&statements.load, values![batch(ids).text(ClerkId::as_str)]).await?;
    let object = |row: &Row| {
        let object = object(row, entity, &statements.loaded)?;
        Ok((object.clerk_id.clone(), object))
    };
    rows.iter().map(object).collect()
}

fn object(row: &Row, entity: &'static Entity, fields: &[Field]) -> Result<User> {
    let mut profile = Profile::default();
    for (field, column) in fields.iter().zip(1..) {
        let cell = match field.holds {
            Holds::Text => row.maybe(column)?.map(Cell::Text),
            Holds::Json => row.maybe(column)?.map(Cell::Json),
            Holds::Bool => row.maybe(column)?.map(Cell::Bool),
            Holds::Time => row.maybe(column)?.map(Cell::Time),
        };
        profile.set(*field, cell.unwrap_or_default());
    }
    let times = fields.len() + 1;
    let id = row.get::<String>(0)?;
    Ok(User {
        clerk_id: ClerkId::new(entity, id).ok_or_else(|| StoreError::new(Trouble::Broken))?,
        profile,
        created_at: row.maybe(times)?,
        updated_at: row.maybe(times + 1)?.unwrap_or_default(),
        synced_at: row.maybe(times + 2)?.unwrap_or_default(),
        // Any mark of deletion counts, readable or not.
        deleted_at: if row.is_null(times + 3)? {
            None
        } else {
            Some(row.maybe(times + 3)?.unwrap_or_default())
        },
    })
}

/// Insert rows. [`Trouble::Raced`] if one is there already.
pub(in crate::store) async fn insert(
    session: &mut dyn Session,
    objects: &[User],
    fields: FieldSet,
) -> Result<()> {
    write(session, objects, fields, |statements| &statements.insert).await
}

/// Update the columns of `fields`. [`Trouble::Raced`] if a row is gone.
pub(in crate::store) async fn update(
    session: &mut dyn Session,
    objects: &[User],
    fields: FieldSet,
) -> Result<()> {
    write(session, objects, fields, |statements| &statements.update).await
}

async fn write(
    session: &mut dyn Session,
    objects: &[User],
    fields: FieldSet,
    statement: fn(&Statements) -> &Statement,
) -> Result<()> {
    let Some(first) = objects.first() else { return Ok(()) };
    let statements = Statements::of(first.clerk_id.entity(), fields);
    let written = session.write_objects(statement(&statements), &[statements.rows(objects)]).await?;
    are_theirs(&written, objects)
}

/// Whether the rows that were written are those of these objects, and all of them.
fn are_theirs(written: &[Row], objects: &[User]) -> Result<()> {
    let mut ids: HashSet<&str> = objects.iter().map(|object| object.clerk_id.as_str()).collect();
    for row in written {
        if !ids.remove(row.get::<String>(0)?.as_str()) {
            return Err(StoreError::changed_id());
        }
    }
    if ids.is_empty() { Ok(()) } else { Err(StoreError::new(Trouble::Raced)) }
}
