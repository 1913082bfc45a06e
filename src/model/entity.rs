//! What a kind of Clerk object is, as its declaration in `entity` says it.
//!
//! Reading, planning, statements and tables go by the declaration: nothing else knows the name of a column.

use std::{fmt, hash};

/// Several kinds, such as [all there are](crate::entity::ALL).
pub type Kinds = &'static [&'static Entity];

/// A kind of Clerk object.
pub struct Entity {
    /// Its name in settings, registers and metrics: `user`.
    pub kind: &'static str,
    /// Its table: `users`.
    pub table: &'static str,
    /// How Clerk's ids of it begin: `user_`.
    pub id_prefix: &'static str,
    /// The event that creates one, the one that updates it, and the one that deletes it. Where Clerk has no such event, the name is
    /// what messages to other systems and entries of the queue are called by.
    pub events: [&'static str; 3],
    /// Other events that show one as it is.
    pub also: &'static [&'static str],
    /// The path of the list of all of them in Clerk's Backend API, and of one of them if an id is put behind it: `users`. A
    /// kind that has no list has none.
    pub path: Option<&'static str>,
    /// What the list is asked with, beside the limit and the offset.
    pub query: &'static [(&'static str, &'static str)],
    /// Where in the entries of the list they stand, if they are not the entries themselves.
    pub within: Option<Within>,
    /// Where Clerk shows those of one owner, if it has no list of all.
    pub of_each: &'static [OfEach],
    /// Whether one of them can be asked for.
    pub has_one: bool,
    /// The columns that can be synced, in the order in which the table has them.
    pub columns: &'static [Column],
    /// Objects of other kinds that its events show whole.
    pub nested: &'static [Nested],
    /// Paths within `data` of what no body that is kept may hold: tickets, keys, and whole people that nothing is read of.
    pub secrets: &'static [&'static [&'static str]],
    /// When an object of these kinds changes, Clerk may also change objects of this kind and sends no event. So they are compared with
    /// Clerk afterwards.
    pub follows: &'static [&'static Entity],
    /// Whether its table has `preferences`, which are the application's own.
    pub has_preferences: bool,
    /// Names of columns that no two live rows have in common; empty if there are none such.
    pub unique: &'static [&'static str],
}

// Kinds name each other in circles.
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
    /// What an event of this type says of an object; `None` if it is about another kind.
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

    /// The column that holds the e-mail address of a person who need not be a user: who is erased takes such rows along.
    pub fn address(&'static self) -> Option<Field> {
        self.fields().find(|field| field.is_address)
    }

    /// The type of the event that deletes one.
    pub fn deletion(&self) -> &'static str {
        self.events[2]
    }

    /// Whether Clerk's Backend API shows all of them.
    pub fn is_listed(&self) -> bool {
        self.path.is_some() || !self.of_each.is_empty()
    }

    /// Whether the list has every object, so that one which is not in it is gone. A list of something else may lack some.
    pub fn is_listed_whole(&self) -> bool {
        self.within.is_none()
    }

    /// Whether it is about a person, whose erasure is proven and may be held back.
    pub fn is_person(&self) -> bool {
        self.columns.iter().any(|column| column.identifies)
    }

    /// The columns by which it is known whether a row was anonymised: those that tell who somebody is, or, of what is no person,
    /// all that are not kept.
    pub fn telling(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        let is_person = self.is_person();
        self.fields().filter(
            move |field| {
                if is_person { field.identifies } else { field.anonymized != Anonymized::Kept }
            },
        )
    }

    /// The columns that name its parents, with the kind of each. The deletion of a parent deletes it too.
    pub fn parents(&'static self) -> impl DoubleEndedIterator<Item = (Field, &'static Self)> + Clone {
        self.fields().filter_map(|field| Some((field, field.parent?)))
    }

    /// Whether it goes with others.
    pub fn has_parents(&self) -> bool {
        self.columns.iter().any(|column| column.parent.is_some())
    }

    /// The columns that are synced whatever the allow-list says: without them nobody knows where a row belongs.
    pub fn keys(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        self.fields().filter(|field| field.parent.is_some() || self.unique.contains(&field.name()))
    }

    /// The columns that can be synced.
    pub fn fields(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        (0..self.columns.len()).map(move |place| Field { entity: self, place })
    }

    /// The column that has the object as Clerk shows it.
    pub fn raw(&'static self) -> Option<Field> {
        self.fields().find(Field::is_raw)
    }

    /// The columns that an allow-list can name.
    pub fn selectable(&'static self) -> impl DoubleEndedIterator<Item = Field> + Clone {
        self.fields().filter(|field| !field.is_raw())
    }

    /// The column of this name.
    pub fn named(&'static self, name: &str) -> Option<Field> {
        self.fields().find(|field| field.name == name)
    }

    /// The column of this name, of which a constant is made: there must be one.
    ///
    /// # Panics
    /// If there is none, when the program is compiled.
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

/// Where objects stand in the entries of a list of something else.
#[derive(Debug)]
pub struct Within {
    /// The members that lead there, each an object or a list of them.
    pub members: &'static [&'static str],
    /// Members that are copied into the object where it lacks them: the name there, and the name in the entry.
    pub inherits: &'static [(&'static str, &'static str)],
}

/// Where Clerk's Backend API shows the objects of one owner.
#[derive(Debug)]
pub struct OfEach {
    pub owner: &'static Entity,
    /// The path, with `{}` in place of the owner's id.
    pub path: &'static str,
    /// The parameter that names the owner, if the path is that of a list; else an owner has at most one.
    pub parameter: Option<&'static str>,
    /// The column that has the owner's id: the objects need not say it.
    pub column: &'static str,
}

/// Objects of another kind inside of one.
#[derive(Debug)]
pub struct Nested {
    /// The member that has one of them, or a list.
    pub member: &'static str,
    pub entity: &'static Entity,
    /// What they do not say of themselves: the member of theirs, and that of the object around them.
    pub inherits: &'static [(&'static str, &'static str)],
    /// Whether the list has all of them, so that one which is not in it is gone.
    pub is_whole: bool,
}

/// A column that can be synced.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
pub struct Column {
    /// In settings such as `SYNC_FIELDS`, in the table, in `audit_log.changed_fields`.
    pub name: &'static str,
    pub holds: Holds,
    /// Whether its JSON is an array: what is none cannot be read.
    pub is_array: bool,
    pub place: Place,
    /// Whether it is synced unless a setting says otherwise.
    pub by_default: bool,
    /// Whether it moves at Clerk without an event, only because somebody is there.
    pub moves_by_itself: bool,
    /// Whether it tells who somebody is. Such columns are read whatever the allow-list says, so that it is known whether a
    /// row is anonymised.
    pub identifies: bool,
    /// What it holds in a row that is anonymised.
    pub anonymized: Anonymized,
    /// The kind of the object whose id it holds, without which there is none of this kind either.
    pub parent: Option<&'static Entity>,
    /// Whether the object may belong to no such parent.
    pub is_optional: bool,
    /// Whether it holds the e-mail address of a person who need not be a user.
    pub is_address: bool,
    /// What a sample has here, as JSON: when the object is new, and later. Nothing: null.
    pub samples: [&'static str; 2],
}

impl Column {
    /// The object as Clerk shows it, without secrets, if a setting asks for it. It differs whenever anything differs, and the Backend
    /// API shows objects in another form than events do: a difference here is no drift.
    pub const RAW: Self = Self::new("raw", Holds::Json).at(Place::Object).moves_by_itself();

    /// A column that stands in Clerk's JSON under its own name, is synced only if a setting says so, and is emptied when
    /// its row is anonymised.
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

    /// It stands somewhere else.
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

    /// It moves without an event.
    #[must_use]
    pub const fn moves_by_itself(self) -> Self {
        Self { moves_by_itself: true, ..self }
    }

    /// It tells who somebody is.
    #[must_use]
    pub const fn identifies(self) -> Self {
        Self { identifies: true, ..self }
    }

    /// Samples have this.
    #[must_use]
    pub const fn sample(self, json: &'static str) -> Self {
        self.samples(json, json)
    }

    /// Samples have this when the object is new, and that later.
    #[must_use]
    pub const fn samples(self, new: &'static str, later: &'static str) -> Self {
        Self { samples: [new, later], ..self }
    }

    /// It says nothing of a person, and stays in a row that is to go and cannot.
    #[must_use]
    pub const fn kept(self) -> Self {
        self.anonymized(Anonymized::Kept)
    }

    /// It holds the id of an object of this kind, and goes with that. What names no such id is unusable.
    #[must_use]
    pub const fn parent(self, parent: &'static Entity) -> Self {
        Self { parent: Some(parent), ..self.kept() }
    }

    /// It holds the id of an object of this kind if the object belongs to one, and then goes with that.
    #[must_use]
    pub const fn maybe_parent(self, parent: &'static Entity) -> Self {
        Self { is_optional: true, ..self.parent(parent) }
    }

    /// It holds the e-mail address of a person who need not be a user.
    #[must_use]
    pub const fn address(self) -> Self {
        Self { is_address: true, ..self }
    }

    /// It holds this in an anonymised row.
    #[must_use]
    pub const fn anonymized(self, anonymized: Anonymized) -> Self {
        Self { anonymized, ..self }
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Text,
    Int,
    Bool,
    Time,
    /// Large, and rarely synced.
    Json,
}

/// Where in Clerk's JSON of an object a value stands.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// In the member of the column's name.
    Member,
    /// The column holds the whole object.
    Object,
    /// In the member at the end of this path through objects.
    Path(&'static [&'static str]),
    /// At the end of the first of these paths where anything stands.
    AnyOf(&'static [&'static [&'static str]]),
    /// In this member of that entry of `list` whose `id` the member `id` has.
    Primary { id: &'static str, list: &'static str, member: &'static str },
    /// The same entry: whether its verification is done. Nothing is said of it where `member` cannot be read.
    PrimaryIsVerified { id: &'static str, list: &'static str, member: &'static str },
}

/// What a column holds in an anonymised row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymized {
    /// What it held before.
    Kept,
    Null,
    Text(&'static str),
    /// `deleted-N@anonymized.local`, where `N` is the number of the row.
    Address,
}

/// A column that can be synced, of one kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field {
    entity: &'static Entity,
    place: usize,
}

impl Field {
    /// Whether it holds the object as Clerk shows it.
    pub fn is_raw(&self) -> bool {
        matches!(self.entity.columns[self.place].place, Place::Object)
    }

    /// Of which kind it is.
    pub fn entity(self) -> &'static Entity {
        self.entity
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.entity.columns[self.place].name
    }

    /// How many columns stand before it.
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
    /// Every column there is.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether `field` may be synced.
    pub fn contains(self, field: Field) -> bool {
        self.0 >> field.place & 1 == 1
    }

    /// Those of this kind, in the order of the columns.
    pub fn of(self, entity: &'static Entity) -> impl DoubleEndedIterator<Item = Field> + Clone {
        entity.fields().filter(move |field| self.contains(*field))
    }
}

/// What an event says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is there, and looks like this.
    Upsert,
    /// It is gone.
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

    /// The same, and this kind with these columns and those that are always kept.
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

    /// What is read of a row of this kind: what is synced, and, also where the kind is not, where it belongs.
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

    /// What an event of this type says, and of which kind; `None` if that is not synced.
    pub fn event(&self, event_type: &str) -> Option<(&'static Entity, Meaning)> {
        self.0.iter().find_map(|(entity, _)| Some((*entity, entity.meaning(event_type)?)))
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        Self(fields.into_iter().fold(0, |set, field| set | 1 << field.place))
    }
}
