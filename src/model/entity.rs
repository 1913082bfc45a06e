//! The type of the declarations in `entity`, which describe kinds of Clerk objects.
//!
//! Parsing, planning, SQL statements and tables follow the declaration. No other code knows the name of a column.

use std::{fmt, hash};

/// A list of kinds, such as [all kinds](crate::entity::ALL).
pub type Kinds = &'static [&'static Entity];

/// A kind of Clerk object.
pub struct Entity {
    /// Its name in settings, registers and metrics: `user`.
    pub kind: &'static str,
    /// Its table: `users`.
    pub table: &'static str,
    /// The prefix of Clerk's ids: `user_`.
    pub id_prefix: &'static str,
    /// The events that create, update and delete an object. If Clerk has no such event, messages to other systems and entries
    /// in the queue still use the name.
    pub events: [&'static str; 3],
    /// Other events that contain the whole object.
    pub also: &'static [&'static str],
    /// The path of the list in Clerk's Backend API: `users`. With an id appended, it is the path of one object. `None` if there
    /// is no list.
    pub path: Option<&'static str>,
    /// The parameters of the list, in addition to limit and offset.
    pub query: &'static [(&'static str, &'static str)],
    /// The place of the objects in the entries of the list, if they are not the entries themselves.
    pub within: Option<Within>,
    /// Where Clerk lists the objects of one owner, if it has no list of all.
    pub of_each: &'static [OfEach],
    /// Whether Clerk can return a single object.
    pub has_one: bool,
    /// The columns that can be synced, in the order of the table.
    pub columns: &'static [Column],
    /// Objects of other kinds that its events contain.
    pub nested: &'static [Nested],
    /// Paths within `data` that are removed from stored bodies: tickets, keys, and nested users that are never read.
    pub secrets: &'static [&'static [&'static str]],
    /// When an object of these kinds changes, Clerk may also change objects of this kind without an event. So they are compared
    /// with Clerk afterwards.
    pub follows: &'static [&'static Entity],
    /// Whether its table has `preferences`, which belong to the application.
    pub has_preferences: bool,
    /// The columns whose combined values are unique among live rows; may be empty.
    pub unique: &'static [&'static str],
}

// Not derived, because kinds reference each other in cycles.
impl fmt::Debug for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

impl PartialEq for Entity {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for Entity {}

impl PartialOrd for Entity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.kind.cmp(other.kind)
    }
}

impl hash::Hash for Entity {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl Entity {
    /// The meaning of an event of this type; `None` if it is about another kind.
    pub fn meaning(&self, event_type: &str) -> Option<Meaning> {
        let [created, updated, deleted] = self.events;
        match event_type {
            name if name == created || name == updated || self.also.contains(&name) => Some(Meaning::Upsert),
            name if name == deleted => Some(Meaning::Delete),
            _ => None,
        }
    }

    /// The types of its events.
    pub fn event_types(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.events.into_iter().chain(self.also.iter().copied())
    }

    /// The column with the e-mail address of a person who may not be a user. The erasure of a user deletes the rows with their
    /// address.
    pub fn address(&'static self) -> Option<Field> {
        self.fields().find(|field| field.is_address)
    }

    /// The type of the event that deletes an object.
    pub fn deletion(&self) -> &'static str {
        self.events[2]
    }

    /// Whether Clerk's Backend API can list all objects.
    pub fn is_listed(&self) -> bool {
        self.path.is_some() || !self.of_each.is_empty()
    }

    /// Whether the list is complete, so that objects missing from it are deleted. A list of another kind may lack some objects.
    pub fn is_listed_whole(&self) -> bool {
        self.within.is_none()
    }

    /// Whether it describes a person. The erasure of a person has receipts and can be delayed.
    pub fn is_person(&self) -> bool {
        self.columns.iter().any(|column| column.identifies)
    }

    /// The columns that show whether a row was anonymised: for a person, those that identify them; for other kinds, all columns
    /// that anonymisation changes.
    pub fn telling(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        let is_person = self.is_person();
        self.fields().filter(
            move |field| {
                if is_person { field.identifies } else { field.anonymized != Anonymized::Kept }
            },
        )
    }

    /// The columns that name its parents, with the kind of each. The deletion of a parent deletes the object too.
    pub fn parents(&'static self) -> impl DoubleEndedIterator<Item = (Field, &'static Self)> + Clone {
        self.fields().filter_map(|field| Some((field, field.parent?)))
    }

    /// Whether it has parents.
    pub fn has_parents(&self) -> bool {
        self.columns.iter().any(|column| column.parent.is_some())
    }

    /// The columns that are synced regardless of the allow-list. They determine where a row belongs.
    pub fn keys(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        self.fields().filter(|field| field.parent.is_some() || self.unique.contains(&field.name()))
    }

    /// The columns that can be synced.
    pub fn fields(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        (0..self.columns.len()).map(move |place| Field { entity: self, place })
    }

    /// The column with the whole object as Clerk shows it.
    pub fn raw(&'static self) -> Option<Field> {
        self.fields().find(Field::is_raw)
    }

    /// The columns that an allow-list can name.
    pub fn selectable(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        self.fields().filter(|field| !field.is_raw())
    }

    /// The column with this name.
    pub fn named(&'static self, name: &str) -> Option<Field> {
        self.fields().find(|field| field.name == name)
    }

    /// The column with this name, for use in constants.
    ///
    /// # Panics
    /// At compile time, if there is no such column.
    pub const fn field(&'static self, name: &str) -> Field {
        let mut place = 0;
        while place < self.columns.len() {
            if same(self.columns[place].name.as_bytes(), name.as_bytes()) {
                return Field { entity: self, place };
            }
            place += 1;
        }
        panic!("the declaration has no such column");
    }
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// The place of objects in the entries of a list of another kind.
#[derive(Debug)]
pub struct Within {
    /// The path of members to the objects; each member is an object or a list of objects.
    pub members: &'static [&'static str],
    /// Members that are copied into the object if it lacks them: the name in the object, and the name in the entry.
    pub inherits: &'static [(&'static str, &'static str)],
}

/// Where Clerk's Backend API lists the objects of one owner.
#[derive(Debug)]
pub struct OfEach {
    pub owner: &'static Entity,
    /// The path, with `{}` in place of the owner's id.
    pub path: &'static str,
    /// The parameter that names the owner, if the path is a list. `None`: an owner has at most one object.
    pub parameter: Option<&'static str>,
    /// The column with the owner's id, which the objects themselves may lack.
    pub column: &'static str,
}

/// Objects of another kind that are nested in an object.
#[derive(Debug)]
pub struct Nested {
    /// The member that contains one object or a list.
    pub member: &'static str,
    pub entity: &'static Entity,
    /// Members that are copied from the outer object: the name in the nested object, and the name in the outer object.
    pub inherits: &'static [(&'static str, &'static str)],
    /// Whether the list is complete, so that objects missing from it are deleted.
    pub is_whole: bool,
}

/// A column that can be synced.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent property")]
pub struct Column {
    /// The name in settings such as `SYNC_FIELDS`, in the table and in `audit_log.changed_fields`.
    pub name: &'static str,
    pub holds: Holds,
    /// Whether its JSON must be an array. Other values are unusable.
    pub is_array: bool,
    pub place: Place,
    /// Whether it is synced by default.
    pub by_default: bool,
    /// Whether Clerk changes it without an event, for example when a user is active.
    pub moves_by_itself: bool,
    /// Whether it identifies a person. Such columns are read regardless of the allow-list, because they show whether a row is
    /// anonymised.
    pub identifies: bool,
    /// Its value in an anonymised row.
    pub anonymized: Anonymized,
    /// The kind of the parent whose id it holds. An object is deleted with its parent.
    pub parent: Option<&'static Entity>,
    /// Whether the object may lack this parent.
    pub is_optional: bool,
    /// Whether it holds the e-mail address of a person who may not be a user.
    pub is_address: bool,
    /// The values in samples, as JSON: for a new object, and for an updated one. `null` if there is none.
    pub samples: [&'static str; 2],
}

impl Column {
    /// The whole object as Clerk shows it, without secrets, if `SYNC_RAW` names its kind. The Backend API and events show objects
    /// in different forms, so a difference in this column is not drift.
    pub const RAW: Self = Self::new("raw", Holds::Json).at(Place::Object).moves_by_itself();

    /// A column that has the same name in Clerk's JSON, is synced only if a setting names it, and is set to null when its row is
    /// anonymised.
    pub const fn new(name: &'static str, holds: Holds) -> Self {
        Self {
            name,
            holds,
            is_array: false,
            place: Place::Member,
            by_default: false,
            moves_by_itself: false,
            identifies: false,
            anonymized: Anonymized::Null,
            parent: None,
            is_optional: false,
            is_address: false,
            samples: ["null", "null"],
        }
    }

    /// Its value is at this place in Clerk's JSON.
    #[must_use]
    pub const fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// It holds an array.
    #[must_use]
    pub const fn array(self) -> Self {
        Self { is_array: true, ..self }
    }

    /// It is synced by default.
    #[must_use]
    pub const fn by_default(self) -> Self {
        Self { by_default: true, ..self }
    }

    /// Clerk changes it without an event.
    #[must_use]
    pub const fn moves_by_itself(self) -> Self {
        Self { moves_by_itself: true, ..self }
    }

    /// It identifies a person.
    #[must_use]
    pub const fn identifies(self) -> Self {
        Self { identifies: true, ..self }
    }

    /// Samples have this value.
    #[must_use]
    pub const fn sample(self, json: &'static str) -> Self {
        self.samples(json, json)
    }

    /// Samples have `new` for a new object, and `later` for an updated one.
    #[must_use]
    pub const fn samples(self, new: &'static str, later: &'static str) -> Self {
        Self { samples: [new, later], ..self }
    }

    /// It is not personal data. It stays in a row that should be deleted but cannot be.
    #[must_use]
    pub const fn kept(self) -> Self {
        self.anonymized(Anonymized::Kept)
    }

    /// It holds the id of a parent of this kind. The object is deleted with the parent. Data without such an id is unusable.
    #[must_use]
    pub const fn parent(self, parent: &'static Entity) -> Self {
        Self { parent: Some(parent), ..self.kept() }
    }

    /// Like [`parent`](Self::parent), but the object may lack this parent.
    #[must_use]
    pub const fn maybe_parent(self, parent: &'static Entity) -> Self {
        Self { is_optional: true, ..self.parent(parent) }
    }

    /// It holds the e-mail address of a person who may not be a user.
    #[must_use]
    pub const fn address(self) -> Self {
        Self { is_address: true, ..self }
    }

    /// It has this value in an anonymised row.
    #[must_use]
    pub const fn anonymized(self, anonymized: Anonymized) -> Self {
        Self { anonymized, ..self }
    }
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Text,
    Int,
    Bool,
    Time,
    /// Large, and rarely synced.
    Json,
}

/// The place of a value in Clerk's JSON of an object.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// In the member with the column's name.
    Member,
    /// The column holds the whole object.
    Object,
    /// In the member at the end of this path through objects.
    Path(&'static [&'static str]),
    /// At the end of the first of these paths that has a value.
    AnyOf(&'static [&'static [&'static str]]),
    /// In `member` of the entry of `list` whose `id` equals the value of the member `id`.
    Primary { id: &'static str, list: &'static str, member: &'static str },
    /// Whether the same entry is verified. No value if `member` cannot be read.
    PrimaryIsVerified { id: &'static str, list: &'static str, member: &'static str },
}

/// The value of a column in an anonymised row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymized {
    /// Its previous value.
    Kept,
    Null,
    Text(&'static str),
    /// `deleted-N@anonymized.local`, where `N` is the number of the row.
    Address,
}

/// A column of a kind that can be synced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field {
    entity: &'static Entity,
    place: usize,
}

impl Field {
    /// Whether it holds the whole object as Clerk shows it.
    pub fn is_raw(&self) -> bool {
        matches!(self.entity.columns[self.place].place, Place::Object)
    }

    /// Its kind.
    pub fn entity(self) -> &'static Entity {
        self.entity
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.entity.columns[self.place].name
    }

    /// The number of columns before it.
    pub fn place(self) -> usize {
        self.place
    }
}

impl std::ops::Deref for Field {
    type Target = Column;

    fn deref(&self) -> &Column {
        &self.entity.columns[self.place]
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of the columns of one kind: the allow-list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSet(u64);

impl FieldSet {
    /// Every column.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether `field` may be synced.
    pub fn contains(self, field: Field) -> bool {
        self.0 >> field.place & 1 == 1
    }

    /// The fields of this kind in the set, in the order of the columns.
    pub fn of(self, entity: &'static Entity) -> impl DoubleEndedIterator<Item = Field> + Clone {
        entity.fields().filter(move |field| self.contains(*field))
    }
}

/// What an event reports about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It exists with these values.
    Upsert,
    /// It is deleted.
    Delete,
}

/// What is synced: the kinds, and the allow-list of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<(&'static Entity, FieldSet)>);

impl Selection {
    /// One kind, with these columns.
    pub fn of(entity: &'static Entity, fields: FieldSet) -> Self {
        Self::default().with(entity, fields)
    }

    /// Adds or replaces this kind, with these columns and those that are always synced.
    #[must_use]
    pub fn with(mut self, entity: &'static Entity, fields: FieldSet) -> Self {
        let keys: FieldSet = entity.keys().collect();
        self.0.retain(|(other, _)| *other != entity);
        self.0.push((entity, FieldSet(fields.0 | keys.0)));
        self
    }

    /// The allow-list of this kind: empty if the kind is not synced.
    pub fn fields(&self, entity: &Entity) -> FieldSet {
        self.0
            .iter()
            .find(|(other, _)| *other == entity)
            .map_or_else(FieldSet::default, |(_, fields)| *fields)
    }

    /// The allow-list of this kind; `None` if the kind is not synced.
    pub fn fields_of(&self, entity: &Entity) -> Option<FieldSet> {
        self.has(entity).then(|| self.fields(entity))
    }

    /// The columns to read from a row of this kind: the synced ones, and always those that determine where the row belongs.
    pub fn read(&self, entity: &'static Entity) -> FieldSet {
        let keys: FieldSet = entity.keys().collect();
        FieldSet(self.fields(entity).0 | keys.0)
    }

    /// The kinds that are synced.
    pub fn entities(&self) -> impl Iterator<Item = &'static Entity> + '_ {
        self.0.iter().map(|(entity, _)| *entity)
    }

    /// Whether this kind is synced.
    pub fn has(&self, entity: &Entity) -> bool {
        self.0.iter().any(|(other, _)| *other == entity)
    }

    /// The kind and the meaning of an event of this type; `None` if the kind is not synced.
    pub fn event(&self, event_type: &str) -> Option<(&'static Entity, Meaning)> {
        self.0.iter().find_map(|(entity, _)| Some((*entity, entity.meaning(event_type)?)))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        Self(fields.into_iter().fold(0, |set, field| set | 1 << field.place))
    }
}
