//! Tolerant parsing of verified bodies into typed deliveries.
//!
//! Absent, `null` and present are three different things: an absent field keeps the stored value. Only allow-listed fields are
//! read, so odd values in other fields cannot break an event. A value that cannot be read, or that some database cannot hold,
//! counts as absent, and [`Event::unread`] names its field. An event is [`Content::Unusable`] only without a type, an id, or the
//! id of a parent. Its reason names fields and types, never values.
//!
//! Source: Clerk's webhook spec 2025-04-15. Times are Unix milliseconds, but published examples also have seconds and text.

use std::{
    borrow::{Borrow, Cow},
    collections::BTreeMap,
    sync::LazyLock,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    signature::Verified,
    text::{decoded, fits_every_store, storable},
    time::instant,
};
use crate::{
    entity,
    model::{
        Actor, Change, ClerkId, Content, Delivery, Entity, Field, FieldSet, Holds, Inside, MAX_ID_BYTES,
        Meaning, Nested, News, Patch, Place, Selection, Source, Value, Version, Within,
    },
    telemetry::{self, TraceContext},
};

/// Metadata that Clerk never shows to a browser.
const PRIVATE: &str = "private_metadata";

/// Members that are never stored as part of a whole object: private metadata, and anything that grants access.
const NEVER: [&str; 8] = [
    PRIVATE,
    "access_token",
    "api_key",
    "external_verification_redirect_url",
    "nonce",
    "refresh_token",
    "ticket",
    "token",
];

/// The depth to which JSON is searched for them; deeper content is left out.
const MOST_LEVELS: usize = 128;

/// The longest stored event type, in bytes; Clerk's longest has 33.
const MAX_TYPE_BYTES: usize = 255;

/// The longest stored part of an actor's address or user agent, in characters.
const MAX_ACTOR_CHARS: usize = 512;

/// The longest text of a field that every database can index, in bytes; Clerk's longest address has 254.
const MAX_INDEXED_BYTES: usize = 2_000;

/// Every event type that Clerk is known to send, by object. New types appear without notice.
const TYPES: [(&str, &[&str]); 15] = [
    ("user", &["created", "updated", "deleted"]),
    ("session", &["created", "pending", "ended", "removed", "revoked"]),
    ("organization", &["created", "updated", "deleted"]),
    ("organizationDomain", &["created", "updated", "deleted"]),
    ("organizationInvitation", &["created", "accepted", "revoked"]),
    ("organizationMembership", &["created", "updated", "deleted"]),
    ("role", &["created", "updated", "deleted"]),
    ("permission", &["created", "updated", "deleted"]),
    ("email", &["created"]),
    ("sms", &["created"]),
    ("waitlistEntry", &["created", "updated"]),
    ("subscription", &["created", "updated", "active", "pastDue"]),
    ("subscriptionItem", &["created", "updated", "active", "canceled", "upcoming", "ended", "abandoned"]),
    ("subscriptionItem", &["incomplete", "pastDue", "freeTrialEnding"]),
    ("paymentAttempt", &["created", "updated"]),
];

/// Their full names, as events contain them.
pub static KNOWN_TYPES: LazyLock<Vec<String>> = LazyLock::new(|| {
    TYPES.iter().flat_map(|(object, what)| what.iter().map(move |what| format!("{object}.{what}"))).collect()
});

/// The type of clerk-sync's own test event, which is never stored. A successful answer shows that the secret that signed it is
/// correct.
pub const PROBE: &str = "clerk-sync.probe";

/// The metric label of an event type: its name if it is known, otherwise `other`, so that senders cannot create labels.
pub fn label(event_type: Option<&str>) -> &'static str {
    let known = event_type.and_then(|name| KNOWN_TYPES.iter().find(|known| *known == name));
    known.map_or(telemetry::OTHER, String::as_str)
}

/// The metric label for the kind of an event's object.
pub fn kind(event_type: &str) -> &'static str {
    entity::of_event(event_type).map_or(telemetry::OTHER, |entity| entity.kind)
}

/// A verified body, parsed where clerk-sync needs it.
#[derive(Debug)]
pub struct Event {
    pub delivery: Delivery,
    /// Clerk's `instance_id`; absent in older deliveries and in Dashboard examples.
    pub instance_id: Option<String>,
    /// Whether an escaped NUL or lone surrogate became U+FFFD.
    pub replaced_characters: bool,
    /// Names of fields that are present but cannot be read, or cannot be stored in every database; they count as absent.
    pub unread: Vec<&'static str>,
}

/// A usable part of an event, or the reason why the event is unusable.
type Usable<T> = Result<T, String>;

/// Parse a verified body. Never fails: problems are part of the result.
pub fn parse(verified: &Verified, selection: &Selection, now: DateTime<Utc>) -> Event {
    let lossy = decoded(verified.body());
    let json = storable(&lossy);
    let replaced_characters = matches!(json, Cow::Owned(_)) || matches!(lossy, Cow::Owned(_));
    let mut event = Event {
        delivery: Delivery {
            svix_id: Some(verified.svix_id().clone()),
            event_type: None,
            clerk_id: None,
            event_at: verified.attempted_at(),
            received_at: now,
            source: Source::Webhook,
            payload: Bytes::clone(verified.body()),
            content: Content::Ignored,
            nested: Inside::default(),
            whole: Vec::new(),
            parts_digest: None,
            trace: TraceContext::default(),
        },
        instance_id: None,
        replaced_characters,
        unread: Vec::new(),
    };
    event.delivery.content = match object(&json) {
        _ if is_test_of_svix(&json) => Content::Ignored,
        Some(envelope) => {
            read_envelope(&envelope, &mut event, selection, now).unwrap_or_else(Content::Unusable)
        }
        None => Content::Unusable("the body is not a JSON object".to_owned()),
    };
    event
}

/// Svix's message for testing an endpoint (`svix.ping`). It is signed like any other, and concerns no user.
fn is_test_of_svix(json: &str) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Test {
        #[serde(rename = "success")]
        _success: bool,
    }
    // A longer body contains more than that.
    json.len() < 256 && serde_json::from_str::<Test>(json).is_ok()
}

/// An object from the Backend API.
#[derive(Clone, Debug)]
pub struct Found {
    /// The text in place of the id if that is not a valid id. The content is then unusable, as it is without the id of a parent.
    pub clerk_id: ClerkId,
    /// Unix milliseconds; lists are sorted by it.
    pub created_at: i64,
    /// Its contents as a change that is no newer than the moment of reading.
    pub delivery: Delivery,
    /// See [`Event::unread`].
    pub unread: Vec<&'static str>,
}

/// A page of a list of the Backend API. The objects are its entries or are nested in them.
#[derive(Clone, Debug)]
pub struct Page {
    pub found: Vec<Found>,
    /// The number of entries in the whole list.
    pub total: u64,
    /// The number of entries on this page, and the ids of the first and the last one.
    pub entries: usize,
    pub first: Option<String>,
    pub last: Option<String>,
}

/// Parse a page of objects, read at `moment`; `None` if it is not a list with a count.
pub(super) fn objects(body: &[u8], reading: &Reading, moment: Moment) -> Option<Page> {
    #[derive(serde::Deserialize)]
    struct Counted<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
        total_count: u64,
    }
    let text = decoded(body);
    let json = storable(&text);
    let Counted { data, total_count } = serde_json::from_str(&json).ok()?;
    // An invalid id also distinguishes an entry from others.
    let id = |entry: Option<&&RawValue>| {
        let entry = object(entry?.get())?;
        Some(entry.get("id").map_or_else(String::new, |id| id.get().to_owned()))
    };
    let (entries, first, last) = (data.len(), id(data.first()), id(data.last()));
    let found = listed(entries_of(data, reading.entity)?, reading, moment)?;
    Some(Page { found, total: total_count, entries, first, last })
}

/// Parse one owner's objects: one object, or a list with or without a count; also returns the count. If an object does not name
/// its owner, the column gets the owner's id.
pub(super) fn of_owner(
    body: &[u8],
    reading: &Reading,
    moment: Moment,
    (column, owner): (&str, &ClerkId),
) -> Option<(Vec<Found>, Option<u64>)> {
    #[derive(serde::Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
        total_count: Option<u64>,
    }
    let text = decoded(body);
    let json = storable(&text);
    let all: &RawValue = serde_json::from_str(&json).ok()?;
    let (list, total) = serde_json::from_str(all.get())
        .map(|list| (list, None))
        .or_else(|_| serde_json::from_str(all.get()).map(|List { data, total_count }| (data, total_count)))
        .unwrap_or_else(|_| (vec![all], Some(1)));
    let entries = entries_of(list, reading.entity)?;
    let belongs = |data: Object<'_>| found(&data, reading, moment, Some((column, owner)));
    let all: Vec<Found> = entries.into_iter().map(belongs).collect::<Option<_>>()?;
    log_unread(&all);
    Some((all, total))
}

/// The objects that are the entries of a list or are nested in them; `None` if the entries have the wrong form.
fn entries_of<'a>(list: Vec<&'a RawValue>, entity: &Entity) -> Option<Vec<Object<'a>>> {
    let mut entries: Vec<Object<'a>> =
        list.into_iter().map(|raw| object(raw.get())).collect::<Option<_>>()?;
    if !entries.is_empty() && entries.iter().all(|entry| !entry.contains_key("id")) {
        return None;
    }
    if let Some(Within { members, inherits }) = &entity.within {
        entries = entries.iter().flat_map(|entry| inside(entry, members, inherits)).collect();
    }
    Some(entries)
}

/// The objects at the end of this path of members, each an object or a list, with the members that they inherit.
fn inside<'a>(around: &Object<'a>, members: &[&str], inherits: &[(&'static str, &str)]) -> Vec<Object<'a>> {
    let [first, rest @ ..] = members else { return Vec::new() };
    let mut objects = around.get(*first).map_or_else(Vec::new, |raw| each(raw));
    for member in rest {
        let members = objects.iter().filter_map(|object| object.get(*member).copied());
        objects = members.flat_map(each).collect();
    }
    for object in &mut objects {
        for (own, other) in inherits {
            if let Some(raw) = around.get(*other)
                && object.get(*own).is_none_or(|said| is_null(said))
            {
                object.insert(Name(Cow::Borrowed(*own)), *raw);
            }
        }
    }
    objects
}

/// The objects of a list, or the single object in its place.
fn each(raw: &RawValue) -> Vec<Object<'_>> {
    let list: Option<Vec<&RawValue>> = serde_json::from_str(raw.get()).ok();
    let all = list.unwrap_or_else(|| vec![raw]);
    all.into_iter().filter_map(|raw| object(raw.get())).collect()
}

/// Parse a bare list of users.
pub(super) fn users(body: &[u8], reading: &Reading, moment: Moment) -> Option<Vec<Found>> {
    let text = decoded(body);
    let json = storable(&text);
    listed(entries_of(serde_json::from_str(&json).ok()?, reading.entity)?, reading, moment)
}

/// An entry with an unusable id does not affect the others.
fn listed(entries: Vec<Object<'_>>, reading: &Reading, moment: Moment) -> Option<Vec<Found>> {
    let mut users: Vec<Found> =
        entries.into_iter().map(|data| found(&data, reading, moment, None)).collect::<Option<_>>()?;
    log_unread(&users);
    // Lists are sorted by sign-up, so a user without a time of sign-up gets the neighbour's.
    let mut neighbour = users.iter().map(|user| user.created_at).find(|at| *at != UNSAID).unwrap_or(UNSAID);
    for user in &mut users {
        if user.created_at == UNSAID {
            user.created_at = neighbour;
        }
        neighbour = user.created_at;
    }
    Some(users)
}

/// Parse a single object.
pub(super) fn user(body: &[u8], reading: &Reading, moment: Moment) -> Option<Found> {
    let text = decoded(body);
    let found = found(&object(&storable(&text))?, reading, moment, None)?;
    log_unread(std::slice::from_ref(&found));
    Some(found)
}

/// Log one line per page, which names the first of these users.
fn log_unread(users: &[Found]) {
    let mut odd = users.iter().filter(|user| !user.unread.is_empty());
    let Some(first) = odd.next() else { return };
    tracing::warn!(
        clerk_id = %first.clerk_id,
        fields = first.unread.join(","),
        others = odd.count(),
        "fields of an object of the Backend API cannot be read or stored: they keep their stored values"
    );
}

/// Stands for a time of sign-up that is absent or unreadable.
pub(crate) const UNSAID: i64 = 0;

/// How to read objects, and for which source.
#[derive(Clone, Debug)]
pub struct Reading {
    pub source: Source,
    pub entity: &'static Entity,
    /// The allow-list.
    pub fields: FieldSet,
    /// The allow-lists of the synced kinds nested in them.
    pub inside: Selection,
}

/// The moment of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The time at which the contents were true.
    pub(super) read_at: DateTime<Utc>,
    /// The current time by our clock.
    pub(super) now: DateTime<Utc>,
}

fn found(
    data: &Object<'_>,
    reading: &Reading,
    moment: Moment,
    owner: Option<(&str, &ClerkId)>,
) -> Option<Found> {
    let Moment { read_at, now } = moment;
    let usable = data.get("id").and_then(|id| string(id)).and_then(|id| ClerkId::new(reading.entity, id));
    let mut unread = Vec::new();
    let created_at = time_of(data, "created_at", &mut unread, |_| true);
    let updated_at = time_of(data, "updated_at", &mut unread, |at| plausible(at, now));
    let mut patch = read_patch(data, reading.entity, reading.fields, &mut unread);
    own(reading.entity, &mut patch, owner);
    let content = match (&usable, has_its_parents(reading.entity, &patch)) {
        (None, _) => Content::Unusable(format!("its id is not one of 1 to {MAX_ID_BYTES} bytes")),
        (_, Err(reason)) => Content::Unusable(reason),
        (Some(clerk_id), Ok(())) => Content::Change(Change {
            clerk_id: clerk_id.clone(),
            version: Version::at(updated_at.unwrap_or(read_at), read_at, String::new()),
            news: News::Upsert { patch, created_at },
            actor: None,
        }),
    };
    let clerk_id = usable.or_else(|| stand_in(reading.entity, data.get("id").copied()))?;
    let mut delivery = Delivery::without_webhook(clerk_id.clone(), reading.source, read_at, read_at, content);
    set_nested(&mut delivery, data, reading.entity, &reading.inside, now);
    if owner.is_some() {
        let mut changes = delivery.nested.to_vec();
        for change in &mut changes {
            if let News::Upsert { patch, .. } = &mut change.news {
                own(change.clerk_id.entity(), patch, owner);
            }
        }
        delivery.nested = changes.into();
    }
    let created_at = created_at.map_or(UNSAID, |at| at.timestamp_millis());
    Some(Found { clerk_id, created_at, delivery, unread })
}

/// Set the owner of an object that names none.
fn own(entity: &'static Entity, patch: &mut Patch, owner: Option<(&str, &ClerkId)>) {
    let Some((column, owner)) = owner else { return };
    let says_nobody = |field: Field| patch.get(field).is_none_or(|said| *said == Value::Null);
    if let Some(field) = entity.named(column)
        && says_nobody(field)
        && entity.parents().all(|(other, _)| !other.is_optional || says_nobody(other))
    {
        patch.set(field, Value::Text(owner.as_str().to_owned()));
    }
}

/// A replacement for an invalid id: the invalid text, up to the maximum length.
fn stand_in(entity: &'static Entity, id: Option<&RawValue>) -> Option<ClerkId> {
    let id = id.map(|raw| string(raw).unwrap_or_else(|| raw.get().to_owned()));
    let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| "(no id)".to_owned());
    ClerkId::new(entity, &id[..id.floor_char_boundary(MAX_ID_BYTES)])
}

/// The event that Clerk sends when an object is deleted; it contains only the id.
pub fn deletion_body(id: &ClerkId, at: DateTime<Utc>) -> Bytes {
    let entity = id.entity();
    let body = serde_json::json!({
        "data": { "deleted": true, "id": id.as_str(), "object": entity.kind },
        "object": "event",
        "timestamp": at.timestamp_millis(),
        "type": entity.deletion(),
    });
    Bytes::from(body.to_string())
}

/// A member with nested objects that are not read yet.
struct Unread {
    nested: &'static Nested,
    fields: FieldSet,
    /// The member itself and those that its objects inherit, by their names.
    members: Vec<(&'static str, Box<RawValue>)>,
}

impl Unread {
    fn new(data: &Object<'_>, nested: &'static Nested, fields: FieldSet) -> Option<Self> {
        let inherited = nested.inherits.iter().map(|(_, other)| *other);
        let names = [nested.member].into_iter().chain(inherited);
        let members = names.filter_map(|name| Some((name, (*data.get(name)?).to_owned())));
        data.contains_key(nested.member).then(|| Self { nested, fields, members: members.collect() })
    }

    /// The objects of the member.
    fn objects(&self) -> Vec<Object<'_>> {
        let members = self.members.iter().map(|(name, raw)| (Name(Cow::Borrowed(*name)), &**raw));
        inside(&members.collect(), &[self.nested.member], self.nested.inherits)
    }
}

/// Set the nested objects of a delivery, the kinds that it lists whole, and the digest of both.
fn set_nested(
    delivery: &mut Delivery,
    data: &Object<'_>,
    entity: &'static Entity,
    inside: &Selection,
    now: DateTime<Utc>,
) {
    let of_kind = |nested| Unread::new(data, nested, inside.fields_of(nested.entity)?);
    let unread: Vec<Unread> = entity.nested.iter().filter_map(of_kind).collect();
    if unread.is_empty() {
        return;
    }
    let is_whole = |unread: &&Unread| unread.nested.is_whole && unread.members[0].1.get().starts_with('[');
    delivery.whole = unread.iter().filter(is_whole).map(|unread| unread.nested.entity).collect();
    delivery.parts_digest = (!delivery.whole.is_empty()).then(|| digest_of(&unread));
    let (event_at, tie) = (delivery.event_at, delivery.tie());
    delivery.nested = Inside::read_by(move || read_nested(&unread, (event_at, &tie), now));
}

/// A digest of the nested objects, of the fields that are read, and of the program that reads them.
fn digest_of(unread: &[Unread]) -> String {
    let mut hash = Sha256::new();
    // With its length, so that no other sequence of texts gives the same digest.
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    add(env!("CARGO_PKG_VERSION"));
    for Unread { nested, fields, members } in unread {
        add(nested.entity.kind);
        fields.of(nested.entity).for_each(|field| add(field.name()));
        add(members[0].1.get());
    }
    hex::encode(&hash.finalize()[..16])
}

/// The changes of the nested objects, each once. An unreadable nested object is left out: it has events of its own.
fn read_nested(unread: &[Unread], (event_at, tie): (DateTime<Utc>, &str), now: DateTime<Utc>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for kind in unread {
        let entity = kind.nested.entity;
        for inside in kind.objects() {
            let mut unread = Vec::new();
            let id = inside.get("id").and_then(|id| string(id)).and_then(|id| ClerkId::new(entity, id));
            let created_at = time_of(&inside, "created_at", &mut unread, |_| true);
            let updated_at = time_of(&inside, "updated_at", &mut unread, |at| plausible(at, now));
            let patch = read_patch(&inside, entity, kind.fields, &mut unread);
            let Some(clerk_id) = id.filter(|id| {
                has_its_parents(entity, &patch).is_ok() && changes.iter().all(|change| change.clerk_id != *id)
            }) else {
                continue;
            };
            let version = Version::at(updated_at.unwrap_or(event_at), event_at, tie.to_owned());
            changes.push(Change { clerk_id, version, news: News::Upsert { patch, created_at }, actor: None });
        }
    }
    changes
}

/// The body without the members at these paths in `data`.
fn without(paths: &[&[&str]], body: &[u8]) -> Bytes {
    let text = decoded(body);
    let paths: Vec<Vec<&str>> = paths.iter().map(|path| [&["data"], *path].concat()).collect();
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    Bytes::from(pruned(&storable(&text), &paths, &[], MOST_LEVELS).into_owned())
}

/// Fill in the known parts of the event as early as possible, so that even an unusable event is stored under its user.
fn read_envelope(
    envelope: &Object<'_>,
    event: &mut Event,
    selection: &Selection,
    now: DateTime<Utc>,
) -> Usable<Content> {
    event.instance_id = envelope.get("instance_id").and_then(|id| string(id));
    let after_1970 = |at: DateTime<Utc>| at.timestamp() >= 0 && plausible(at, now);
    if let Some(at) = time_of(envelope, "timestamp", &mut event.unread, after_1970) {
        event.delivery.event_at = at;
    }
    let data = object_in(envelope, "data");
    let id = data.as_ref().and_then(|data| data.get("id").copied()).filter(|raw| !is_null(raw));
    let Some(event_type) = envelope
        .get("type")
        .and_then(|name| string(name))
        .filter(|name| (1..=MAX_TYPE_BYTES).contains(&name.len()))
    else {
        // Without a type, the kind of `data.id` is unknown. Such an event is stored without an id, and an erasure searches its body.
        return Err("the envelope has no usable `type`".into());
    };
    event.delivery.event_type = Some(event_type.clone());
    let Some((entity, meaning)) = selection.event(&event_type) else { return Ok(Content::Ignored) };
    event.delivery.clerk_id = id.and_then(string).and_then(|id| ClerkId::new(entity, id));
    if !entity.secrets.is_empty() {
        event.delivery.payload = without(entity.secrets, &event.delivery.payload);
    }
    let deletion = meaning == Meaning::Delete;
    if deletion && id.is_none() && data.is_some() {
        return Ok(Content::Ignored);
    }
    let data = data.ok_or("`data` is not an object")?;
    let clerk_id = event.delivery.clerk_id.clone().ok_or("`data.id` is not a string of 1 to 255 bytes")?;
    let event_at = event.delivery.event_at;
    let updated_at = time_of(&data, "updated_at", &mut event.unread, |at| plausible(at, now));
    let news = if deletion {
        News::Delete
    } else {
        let created_at = time_of(&data, "created_at", &mut event.unread, |_| true);
        let before = event.unread.len();
        let patch = read_patch(&data, entity, selection.fields(entity), &mut event.unread);
        if event.unread.len() > before && patch.is_empty() && created_at.or(updated_at).is_none() {
            return Err("no field of `data` except its id can be read".into());
        }
        has_its_parents(entity, &patch)?;
        News::Upsert { patch, created_at }
    };
    let tie = event.delivery.tie();
    if !deletion {
        set_nested(&mut event.delivery, &data, entity, selection, now);
    }
    Ok(Content::Change(Change {
        clerk_id,
        version: Version::at(updated_at.unwrap_or(event_at), event_at, tie),
        // A deletion stores no actor: the erasure would have to remove it first.
        actor: if deletion { None } else { read_actor(envelope) },
        news,
    }))
}

/// Zero means no time, and would be older than any stored version. A time more than a day ahead is a mistake, and would block the
/// user's updates until then.
fn plausible(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    at > DateTime::UNIX_EPOCH && at - now <= TimeDelta::days(1)
}

/// A time next to the fields, if it can be read and `fits`; otherwise it counts as absent.
fn time_of(
    object: &Object<'_>,
    name: &'static str,
    unread: &mut Vec<&'static str>,
    fits: impl Fn(DateTime<Utc>) -> bool,
) -> Option<DateTime<Utc>> {
    let raw = object.get(name).filter(|raw| !is_null(raw))?;
    let time = instant(raw.get()).filter(|at| fits(*at));
    if time.is_none() {
        unread.push(name);
    }
    time
}

/// The allow-listed fields of an object; nothing else in `data` is read. Values that cannot be read or stored are left out and
/// named.
fn read_patch(
    data: &Object<'_>,
    entity: &'static Entity,
    fields: FieldSet,
    unread: &mut Vec<&'static str>,
) -> Patch {
    let mut patch = Patch::default();
    for field in fields.of(entity) {
        match read_field(data, field, fields) {
            // Clerk writes an empty text for a payer of the other kind.
            Ok(Some(value)) if field.is_optional && matches!(value.text(), None | Some("")) => {
                patch.set(field, Value::Null);
            }
            Ok(Some(value)) if field.parent.is_none_or(|parent| is_id_of(parent, &value)) => {
                patch.set(field, value);
            }
            Ok(None) => {}
            Ok(Some(_)) | Err(Unreadable) => unread.push(field.name()),
        }
    }
    patch
}

fn is_id_of(entity: &'static Entity, value: &Value) -> bool {
    value.text().is_some_and(|id| ClerkId::new(entity, id).is_some())
}

/// An object needs the ids of all its parents; otherwise cascades and erasures would not find it.
fn has_its_parents(entity: &'static Entity, patch: &Patch) -> Usable<()> {
    let is_missing = |field: &Field| !field.is_optional && patch.get(*field).is_none();
    let Some((field, _)) = entity.parents().find(|(field, _)| is_missing(field)) else {
        return Ok(());
    };
    let place = match field.place {
        Place::Path(names) | Place::AnyOf(&[names, ..]) => names.join("."),
        _ => field.name().to_owned(),
    };
    Err(format!("`{place}` is not a string of 1 to {MAX_ID_BYTES} bytes"))
}

/// A value that is present but cannot be read, or cannot be stored in every database.
struct Unreadable;

type Readable<T> = Result<T, Unreadable>;

fn read_field(data: &Object<'_>, field: Field, fields: FieldSet) -> Readable<Option<Value>> {
    let read = |raw: &RawValue| match value(raw, field.holds)? {
        Value::Json(text) if field.is_array && !text.starts_with('[') => Err(Unreadable),
        value => Ok(value),
    };
    match field.place {
        Place::Object => Ok(Some(raw(data, field.entity(), fields)?)),
        Place::Member => data.get(field.name()).map(|raw| read(raw)).transpose(),
        Place::Path(path) => at(data, path)?.map(read).transpose(),
        Place::AnyOf(paths) => {
            let found = paths.iter().filter_map(|path| at(data, path).ok().flatten());
            let (said, null): (Vec<_>, Vec<_>) = found.partition(|raw| !is_null(raw));
            said.first().or(null.first()).map(|raw| read(raw)).transpose()
        }
        Place::Primary { id, list, member } => {
            primary(data, id, list)?.map(|entry| indexed(entry.as_ref(), member)).transpose()
        }
        Place::PrimaryIsVerified { id, list, member } => {
            let Some(entry) = primary(data, id, list)? else { return Ok(None) };
            // An unreadable address keeps its stored value, so the flag that describes the address stays too.
            indexed(entry.as_ref(), member)?;
            Ok(Some(entry.map_or(Value::Null, |entry| Value::Bool(is_verified(&entry)))))
        }
    }
}

/// The object as received, without secrets. Its own private metadata stays only if the allow-list has it; that of nested objects
/// never does.
fn raw(data: &Object<'_>, entity: &'static Entity, fields: FieldSet) -> Readable<Value> {
    let keeps_private = entity.named(PRIVATE).is_some_and(|field| fields.contains(field));
    let text = written(data, |name, value| {
        if name == PRIVATE && keeps_private {
            return Some(Cow::Borrowed(value.get()));
        }
        pruned_member(name, value, entity.secrets, &NEVER, MOST_LEVELS)
    });
    if fits_every_store(&text) { Ok(Value::Json(text)) } else { Err(Unreadable) }
}

/// JSON text without the members at the ends of these paths through objects and lists, and without members with these names at
/// any depth. This works on the text, because a parsed value loses large numbers and treats some names specially.
fn pruned<'a>(text: &'a str, paths: &[&[&str]], names: &[&str], levels: usize) -> Cow<'a, str> {
    // A name may contain escapes.
    let may_have_a_name = || text.contains('\\') || names.iter().any(|name| text.contains(name));
    if paths.is_empty() && !may_have_a_name() {
        return Cow::Borrowed(text);
    }
    if levels == 0 {
        return Cow::Borrowed("null");
    }
    if let Some(members) = object(text) {
        return Cow::Owned(written(&members, |name, value| pruned_member(name, value, paths, names, levels)));
    }
    let Ok(entries) = serde_json::from_str::<Vec<&RawValue>>(text) else { return Cow::Borrowed(text) };
    let entries: Vec<_> = entries.iter().map(|entry| pruned(entry.get(), paths, names, levels - 1)).collect();
    Cow::Owned(format!("[{}]", entries.join(",")))
}

/// An object as text, with the members for which `text_of` returns a text.
fn written<'a>(data: &Object<'a>, text_of: impl Fn(&str, &'a RawValue) -> Option<Cow<'a, str>>) -> String {
    let members = data.iter().filter_map(|(Name(name), value)| {
        Some(format!("{}:{}", serde_json::Value::from(&**name), text_of(name, value)?))
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// The text of a pruned member; `None` if the member is removed.
fn pruned_member<'a>(
    name: &str,
    value: &'a RawValue,
    paths: &[&[&str]],
    names: &[&str],
    levels: usize,
) -> Option<Cow<'a, str>> {
    let paths: Vec<&[&str]> =
        paths.iter().filter(|path| path.first() == Some(&name)).map(|path| &path[1..]).collect();
    let goes = names.contains(&name) || paths.iter().any(|path| path.is_empty());
    (!goes).then(|| pruned(value.get(), &paths, names, levels - 1))
}

/// The member at the end of a path through objects.
fn at<'a>(data: &Object<'a>, path: &[&str]) -> Readable<Option<&'a RawValue>> {
    let [name, rest @ ..] = path else { return Err(Unreadable) };
    match data.get(*name) {
        Some(raw) if !rest.is_empty() => at(&object(raw.get()).ok_or(Unreadable)?, rest),
        found => Ok(found.copied()),
    }
}

/// The entry of `list` whose id is in the member `id_field`; it need not be the first. `None` if the event does not contain these
/// members; `Some(None)` if there is no such entry, because the id is null or dangles.
#[expect(clippy::option_option, reason = "absent, null and present are three things")]
fn primary<'a>(data: &Object<'a>, id_field: &str, list: &str) -> Readable<Option<Option<Object<'a>>>> {
    let Some(id) = data.get(id_field) else { return Ok(None) };
    if is_null(id) {
        return Ok(Some(None));
    }
    let id = string(id).ok_or(Unreadable)?;
    let Some(entries) = data.get(list) else { return Ok(None) };
    let entries: Option<Vec<&RawValue>> = serde_json::from_str(entries.get()).map_err(|_| Unreadable)?;
    let named = |entry: &Object<'_>| entry.get("id").and_then(|own| string(own)).is_some_and(|own| own == id);
    Ok(Some(entries.unwrap_or_default().into_iter().filter_map(|entry| object(entry.get())).find(named)))
}

/// An address or a number, which clerk-sync or the application may index.
fn indexed(entry: Option<&Object<'_>>, name: &str) -> Readable<Value> {
    let value =
        entry.and_then(|entry| entry.get(name)).map_or(Ok(Value::Null), |raw| value(raw, Holds::Text))?;
    let fits = value.text().is_none_or(|text| text.len() <= MAX_INDEXED_BYTES);
    if fits { Ok(value) } else { Err(Unreadable) }
}

fn is_verified(entry: &Object<'_>) -> bool {
    let verification = object_in(entry, "verification");
    verification
        .and_then(|verification| string(verification.get("status")?))
        .is_some_and(|status| status == "verified")
}

fn read_actor(envelope: &Object<'_>) -> Option<Actor> {
    let request = object_in(&object_in(envelope, "event_attributes")?, "http_request")?;
    let filled = |name: &str| {
        let value: String = string(request.get(name)?)?.chars().take(MAX_ACTOR_CHARS).collect();
        (!value.is_empty()).then_some(value)
    };
    let actor = Actor { ip: filled("client_ip"), user_agent: filled("user_agent") };
    (actor.ip.is_some() || actor.user_agent.is_some()).then_some(actor)
}

/// The members of an object, each as written. If a name repeats, the last one counts, as usual in JSON.
type Object<'a> = BTreeMap<Name<'a>, &'a RawValue>;

/// A member's name, copied only if it contains escapes: a body has dozens of names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn object(json: &str) -> Option<Object<'_>> {
    serde_json::from_str(json).ok()
}

fn object_in<'a>(object_around: &Object<'a>, name: &str) -> Option<Object<'a>> {
    object(object_around.get(name)?.get())
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

fn string(raw: &RawValue) -> Option<String> {
    typed(raw)
}

fn typed<T: DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn value(raw: &RawValue, holds: Holds) -> Readable<Value> {
    if is_null(raw) {
        return Ok(Value::Null);
    }
    let value = match holds {
        Holds::Text => string(raw).map(Value::Text),
        Holds::Int => typed(raw).map(Value::Int),
        Holds::Bool => typed(raw).map(Value::Bool),
        Holds::Time => instant(raw.get()).map(Value::Time),
        Holds::Json => fits_every_store(raw.get()).then(|| Value::Json(raw.get().to_owned())),
    };
    value.ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::{ORGANIZATION_MEMBERSHIP, USER, user};
    use crate::model::SvixId;

    const NOW: i64 = 1_716_883_200_000;

    fn parsed_with(body: &str, fields: FieldSet) -> Event {
        let selection = Selection::of(&USER, fields);
        let at = |milliseconds| DateTime::from_timestamp_millis(milliseconds).expect("in range");
        let svix_id = SvixId::new("msg_1").expect("valid");
        parse(&Verified::kept(svix_id, at(NOW), Bytes::from(body.to_owned())), &selection, at(NOW))
    }

    fn parsed(body: &str) -> Event {
        parsed_with(body, USER.selectable().collect())
    }

    /// A `user.updated` event with these members in `data`.
    fn updated(data: &str) -> String {
        format!(
            r#"{{"type":"user.updated","timestamp":{NOW},"data":{{"id":"user_1","updated_at":{NOW},{data}}}}}"#
        )
    }

    fn change(event: &Event) -> &Change {
        match &event.delivery.content {
            Content::Change(change) => change,
            other => panic!("not a change: {other:?}"),
        }
    }

    fn patch(event: &Event) -> &Patch {
        match &change(event).news {
            News::Upsert { patch, .. } => patch,
            other => panic!("no upsert: {other:?}"),
        }
    }

    fn unusable(body: &str) -> String {
        match parsed(body).delivery.content {
            Content::Unusable(reason) => reason,
            other => panic!("usable: {other:?}"),
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn absent_null_and_present_are_three_things() {
        let event = parsed(&updated(r#""first_name":null,"last_name":"Lovelace""#));
        assert_eq!(patch(&event).get(user::FIRST_NAME), Some(&Value::Null));
        assert_eq!(patch(&event).get(user::LAST_NAME), Some(&text("Lovelace")));
        assert_eq!(patch(&event).get(USER.field("username")), None);
    }

    #[test]
    fn the_primary_email_is_found_by_its_id() {
        let list = r#""email_addresses":[{"id":"a","email_address":"first@example.com"},17,
            {"id":"b","email_address":"primary@example.com","verification":{"status":"verified"}}]"#;
        let email = |data: &str| {
            let event = parsed(&updated(data));
            (
                patch(&event).get(user::EMAIL).cloned(),
                patch(&event).get(USER.field("email_verified")).cloned(),
            )
        };
        let verified = Some(Value::Bool(true));
        assert_eq!(
            email(&format!(r#""primary_email_address_id":"b",{list}"#)),
            (Some(text("primary@example.com")), verified)
        );
        // Unverified; dangling; null; id absent; list absent.
        assert_eq!(
            email(&format!(r#""primary_email_address_id":"a",{list}"#)),
            (Some(text("first@example.com")), Some(Value::Bool(false)))
        );
        assert_eq!(
            email(&format!(r#""primary_email_address_id":"c",{list}"#)),
            (Some(Value::Null), Some(Value::Null))
        );
        assert_eq!(email(r#""primary_email_address_id":null"#), (Some(Value::Null), Some(Value::Null)));
        assert_eq!(email(list), (None, None));
        assert_eq!(email(r#""primary_email_address_id":"b""#), (None, None));
    }

    #[test]
    fn times_fall_back_from_the_user_to_the_envelope_to_the_attempt() {
        let version = |timestamp: &str, updated_at: &str| {
            let body =
                format!(r#"{{"type":"user.updated",{timestamp}"data":{{{updated_at}"id":"user_1"}}}}"#);
            let version = change(&parsed(&body)).version.clone();
            (version.version, version.event_at)
        };
        let (envelope, user) = (NOW - 1000, NOW - 2000);
        let timestamp = format!(r#""timestamp":{envelope},"#);
        assert_eq!(version(&timestamp, &format!(r#""updated_at":{user},"#)), (user, envelope));
        for unusable in ["", "null", "\"now\"", "1.5", "0", "-1", "\"1970-01-01T00:00:00Z\""] {
            let updated_at =
                if unusable.is_empty() { String::new() } else { format!(r#""updated_at":{unusable},"#) };
            assert_eq!(version(&timestamp, &updated_at), (envelope, envelope), "{unusable}");
        }
        for same in ["1716883198", "1716883198.0", "1.716883198e12", r#""2024-05-28T07:59:58Z""#] {
            let updated_at = format!(r#""updated_at":{same},"#);
            assert_eq!(version(&timestamp, &updated_at), (user, envelope), "{same}");
        }
        let a_day = 24 * 60 * 60 * 1000;
        let ahead = |milliseconds: i64| format!(r#""updated_at":{},"#, NOW + milliseconds);
        assert_eq!(version(&timestamp, &ahead(a_day)), (NOW + a_day, envelope));
        assert_eq!(version(&timestamp, &ahead(a_day + 1)), (envelope, envelope));
        // Published examples use seconds.
        assert_eq!(version(r#""timestamp":1716883199,"#, ""), (NOW - 1000, NOW - 1000));
        assert_eq!(version("", ""), (NOW, NOW));
        assert_eq!(version(r#""timestamp":99999999999999,"#, ""), (NOW, NOW));
    }

    #[test]
    fn what_is_not_synced_never_spoils_an_event_however_odd() {
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let only_email = [user::EMAIL].into_iter().collect();
        for odd in [
            r#""first_name":17"#.to_owned(),
            r#""birthday":"\ud800\u0000""#.to_owned(),
            r#""\ud800":1"#.to_owned(),
            r#""passkeys":1e1000000"#.to_owned(),
            format!(r#""public_metadata":{deep}"#),
            r#""created_at":"yesterday""#.to_owned(),
            r#""banned":[],"banned":{}"#.to_owned(),
        ] {
            let event = parsed_with(&updated(&odd), only_email);
            assert!(matches!(event.delivery.content, Content::Change(_)), "{:?}", event.delivery.content);
        }
    }

    #[test]
    fn what_must_not_be_kept_is_cut_out_of_the_text_and_nothing_else_changes() {
        let cut = |text: &str| pruned(text, &[&["a", "url"]], &["nonce"], MOST_LEVELS).into_owned();
        for (whole, left) in [
            (r#"{"a":{"url":1,"b":1e400},"url":2}"#, r#"{"a":{"b":1e400},"url":2}"#),
            (r#"{"a":[{"url":1},{"url":2,"c":3}]}"#, r#"{"a":[{},{"c":3}]}"#),
            (r#"{"b":[[{"nonce":1}]],"n\u006fnce":2}"#, r#"{"b":[[{}]]}"#),
            // Names by which the parser distinguishes numbers and raw texts from objects.
            (
                r#"{"a":1,"b":{"$serde_json::private::Number":"x"}}"#,
                r#"{"a":1,"b":{"$serde_json::private::Number":"x"}}"#,
            ),
            (
                r#"{"b":{"$serde_json::private::RawValue":"["}}"#,
                r#"{"b":{"$serde_json::private::RawValue":"["}}"#,
            ),
        ] {
            assert_eq!(cut(whole), left);
        }
        let deep = format!("{}{{\"nonce\":1}}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(!cut(&deep).contains("nonce"));
        let body = format!(
            r#"{{"type":"session.created","data":{{"id":"sess_1","user_id":"user_1","user":{{"unsafe_metadata":{}}}}}}}"#,
            r#"{"$serde_json::private::Number":"x"}"#
        );
        let kept = without(entity::SESSION.secrets, body.as_bytes());
        assert_eq!(kept, r#"{"data":{"id":"sess_1","user_id":"user_1"},"type":"session.created"}"#);
    }

    #[test]
    fn repeated_keys_mean_the_last() {
        let event = parsed(&updated(r#""first_name":"Ada","first_name":"Augusta""#));
        assert_eq!(patch(&event).get(user::FIRST_NAME), Some(&text("Augusta")));
    }

    #[test]
    fn characters_that_no_database_holds_are_replaced_and_noted() {
        let event = parsed(&updated(r#""first_name":"A\u0000d\ud800a","last_name":"L😀""#));
        assert_eq!(patch(&event).get(user::FIRST_NAME), Some(&text("A\u{fffd}d\u{fffd}a")));
        assert_eq!(patch(&event).get(user::LAST_NAME), Some(&text("L😀")));
        assert!(event.replaced_characters);
        assert!(!parsed(&updated(r#""first_name":"\u0041""#)).replaced_characters);
    }

    #[test]
    fn what_cannot_be_used_says_why_and_keeps_the_bytes() {
        for (body, reason) in [
            ("", "not a JSON object"),
            ("[1]", "not a JSON object"),
            (r#"{"data":{"id":"user_1"}}"#, "no usable `type`"),
            (r#"{"type":17}"#, "no usable `type`"),
            (r#"{"type":"user.created"}"#, "`data`"),
            (r#"{"type":"user.created","data":{}}"#, "`data.id`"),
            (r#"{"type":"user.updated","data":{"id":17}}"#, "`data.id`"),
            (r#"{"type":"user.deleted","data":{"id":17}}"#, "`data.id`"),
            (r#"{"type":"user.updated","data":{"id":"user_1","first_name":7}}"#, "no field of `data`"),
        ] {
            assert!(unusable(body).contains(reason), "{body}: {}", unusable(body));
            assert_eq!(parsed(body).delivery.payload, body.as_bytes());
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_costs_its_field_and_not_the_event() {
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let list = |address: &str| {
            format!(
                r#""primary_email_address_id":"a","email_addresses":[{{"id":"a","email_address":{address},
                    "verification":{{"status":"verified"}}}}]"#
            )
        };
        let long = format!("{}@example.com", "x".repeat(MAX_INDEXED_BYTES));
        for (odd, names) in [
            (r#""first_name":17"#.to_owned(), "first_name"),
            (r#""last_name":["Lovelace"]"#.to_owned(), "last_name"),
            (r#""banned":"yes""#.to_owned(), "banned"),
            (r#""last_sign_in_at":"today""#.to_owned(), "last_sign_in_at"),
            (r#""last_active_at":1.5"#.to_owned(), "last_active_at"),
            (r#""created_at":"yesterday""#.to_owned(), "created_at"),
            (r#""public_metadata":{"a":1e400000}"#.to_owned(), "public_metadata"),
            (format!(r#""unsafe_metadata":{deep}"#), "unsafe_metadata"),
            (r#""primary_email_address_id":"a","email_addresses":1"#.to_owned(), "email,email_verified"),
            (r#""primary_email_address_id":7"#.to_owned(), "email,email_verified"),
            (list("7"), "email,email_verified"),
            (list(&format!("\"{long}\"")), "email,email_verified"),
            (r#""primary_phone_number_id":{},"phone_numbers":[]"#.to_owned(), "phone_number"),
        ] {
            let event = parsed(&updated(&format!(r#"{odd},"username":"ada""#)));
            assert_eq!(event.unread.join(","), names, "{odd}");
            let patch = patch(&event);
            assert_eq!(patch.get(USER.field("username")), Some(&text("ada")), "{odd}");
            for field in USER.fields().filter(|field| names.split(',').any(|n| n == field.name())) {
                assert_eq!(patch.get(field), None, "{odd}");
            }
        }
        assert!(parsed(&updated(&list(r#""ada@example.com""#))).unread.is_empty());
        let timeless =
            r#"{"type":"user.updated","timestamp":"then","data":{"id":"user_1","updated_at":true}}"#;
        assert_eq!(parsed(timeless).unread, ["timestamp", "updated_at"]);
    }

    #[test]
    fn permissions_that_are_no_array_cannot_be_read() {
        let reading = Reading {
            source: Source::Backfill,
            entity: &ORGANIZATION_MEMBERSHIP,
            fields: FieldSet::ALL,
            inside: Selection::default(),
        };
        let at = DateTime::from_timestamp_millis(NOW).expect("in range");
        for (permissions, is_read) in [
            ("[]", true),
            (r#" ["org:a"]"#, true),
            (r#""org:a""#, false),
            (r#"{"a":1}"#, false),
            ("7", false),
        ] {
            let json = format!(
                r#"{{"id":"orgmem_1","organization":{{"id":"org_1"}},"public_user_data":{{"user_id":"user_1"}},
                    "permissions":{permissions}}}"#
            );
            let found = user(json.as_bytes(), &reading, Moment { read_at: at, now: at }).expect("an object");
            let Content::Change(change) = &found.delivery.content else { panic!("unusable: {found:?}") };
            let patch = change.patch().expect("an upsert");
            assert_eq!(
                patch.get(ORGANIZATION_MEMBERSHIP.field("permissions")).is_some(),
                is_read,
                "{permissions}"
            );
            assert_eq!(found.unread.is_empty(), is_read, "{permissions}");
        }
    }

    #[test]
    fn an_object_of_the_api_that_names_no_parent_is_unusable() {
        let reading = Reading {
            source: Source::Backfill,
            entity: &ORGANIZATION_MEMBERSHIP,
            fields: FieldSet::ALL,
            inside: Selection::default(),
        };
        let at = DateTime::from_timestamp_millis(NOW).expect("in range");
        let homeless = r#"{"id":"orgmem_1","organization":null,"public_user_data":{"user_id":"user_1"}}"#;
        let found = user(homeless.as_bytes(), &reading, Moment { read_at: at, now: at }).expect("an object");
        assert!(
            matches!(&found.delivery.content, Content::Unusable(reason) if reason.contains("`organization.id`"))
        );
    }

    #[test]
    fn the_test_message_of_svix_is_ignored_and_nothing_that_looks_like_it() {
        for test in [r#"{"success": true}"#, r#"{"success":false}"#, "\n{ \"success\" : true }\n"] {
            let event = parsed(test);
            assert!(matches!(event.delivery.content, Content::Ignored), "{test}");
            assert_eq!(event.delivery.event_type, None);
        }
        for other in [
            r#"{"success":"user_1"}"#,
            r#"{"success":true,"data":{"id":"user_1"}}"#,
            r#"{"success":true,"user":"user_1"}"#,
            "{}",
            r#"[{"success":true}]"#,
        ] {
            unusable(other);
        }
    }

    #[test]
    fn what_has_no_type_is_kept_under_nobody() {
        for body in [
            r#"{"data":{"id":"sess_1","user":{"id":"user_1"}}}"#,
            r#"{"data":{"id":"user_1"}}"#,
            r#"{"type":"","data":{"id":"user_1"}}"#,
            r#"{"type":["user.updated"],"data":{"id":"user_1"}}"#,
            r#"{"type":"user.updated","data":{"id":"user_1"}"#,
        ] {
            unusable(body);
            assert_eq!(parsed(body).delivery.clerk_id, None, "{body}");
        }
    }

    #[test]
    fn what_stands_in_an_objects_place_spoils_nothing_beside_it() {
        for odd in ["5", "1e9", "null", "[]", r#"["a"]"#, r#""text""#, "true", "{}", r#"{"data":7}"#] {
            let body = |event_type: &str, data: &str| {
                format!(
                    r#"{{"event_attributes":{odd},"type":"{event_type}","data":{data},"http_request":{odd}}}"#
                )
            };
            let email = format!(r#"{{"id":"a","email_address":"a@example.com","verification":{odd}}}"#);
            let user = format!(
                r#"{{"id":"user_1","data":{odd},"primary_email_address_id":"a","email_addresses":[{email}]}}"#
            );
            let event = parsed(&body("user.updated", &user));
            assert_eq!(patch(&event).get(user::EMAIL), Some(&text("a@example.com")), "{odd}");
            assert_eq!(patch(&event).get(USER.field("email_verified")), Some(&Value::Bool(false)), "{odd}");
            assert!(change(&event).actor.is_none());
            let reason = if odd.starts_with('{') { "`data.id`" } else { "`data` is not an object" };
            assert!(unusable(&body("user.updated", odd)).contains(reason), "{odd}");
            let deletion = parsed(&body("user.deleted", odd)).delivery;
            assert_eq!(matches!(deletion.content, Content::Ignored), odd.starts_with('{'), "{odd}");
        }
        let deep = format!(r#"{}{{"id":"user_1"}}{}"#, r#"{"data":"#.repeat(5_000), "}".repeat(5_000));
        let body = format!(r#"{{"type":"user.created","data":{{"id":"user_1","data":{deep}}}}}"#);
        assert_eq!(change(&parsed(&body)).clerk_id.as_str(), "user_1");
        let last = r#"{"type":"user.created","data":5,"data":{"id":"user_1"},"event_attributes":{}}"#;
        assert_eq!(change(&parsed(last)).clerk_id.as_str(), "user_1");
    }

    #[test]
    fn other_types_and_deletions_without_an_id_are_ignored() {
        for body in [
            r#"{"type":"session.created","data":{"id":"sess_1"}}"#,
            r#"{"type":"something.new"}"#,
            r#"{"type":"user.deleted","data":{"deleted":true}}"#,
            r#"{"type":"user.deleted","data":{"deleted":true,"id":null}}"#,
        ] {
            assert!(matches!(parsed(body).delivery.content, Content::Ignored), "{body}");
        }
    }

    #[test]
    fn the_actor_is_taken_from_the_envelope_but_not_of_a_deletion() {
        let event = |event_type: &str, ip: &str| {
            parsed(&format!(
                r#"{{"type":"{event_type}","data":{{"id":"user_1"}},
                    "event_attributes":{{"http_request":{{"client_ip":"{ip}","user_agent":""}}}}}}"#
            ))
        };
        let actor = change(&event("user.updated", "192.0.2.1")).actor.clone().expect("an actor");
        assert_eq!((actor.ip.as_deref(), actor.user_agent), (Some("192.0.2.1"), None));
        assert!(change(&event("user.updated", "")).actor.is_none());
        assert!(change(&event("user.deleted", "192.0.2.1")).actor.is_none());
    }

    #[test]
    fn a_user_without_a_usable_id_spoils_no_page() {
        let at = DateTime::from_timestamp_millis(NOW).expect("in range");
        let reading = Reading {
            source: Source::Backfill,
            entity: &USER,
            fields: FieldSet::ALL,
            inside: Selection::default(),
        };
        let page = |body: &str| users(body.as_bytes(), &reading, Moment { read_at: at, now: at });
        let long = "ä".repeat(200);
        let body = format!(r#"[{{"id":""}},{{"id":7}},{{}},{{"id":"{long}"}},{{"id":"user_1"}}]"#);
        let found = page(&body).expect("a list of users");
        let names: Vec<&str> = found.iter().map(|found| found.clerk_id.as_str()).collect();
        assert_eq!(names, ["(no id)", "7", "(no id)", &long[..254], "user_1"]);
        let usable = |found: &Found| matches!(found.delivery.content, Content::Change(_));
        assert_eq!(found.iter().map(usable).collect::<Vec<_>>(), [false, false, false, false, true]);
        assert!(page("[]").is_some_and(|found| found.is_empty()));
        for other in ["{}", r#"[{"name":"main"}]"#, r#"[{"id":"user_1"},17]"#] {
            assert!(page(other).is_none(), "{other} is not a list of users");
        }
    }

    #[test]
    fn a_deletion_that_we_write_is_one_that_we_read() {
        let id = ClerkId::new(&USER, "user_\"1").expect("valid");
        let at = DateTime::from_timestamp_millis(NOW).expect("in range");
        let body = deletion_body(&id, at);
        let event = parsed(str::from_utf8(&body).expect("text"));
        assert_eq!(change(&event).clerk_id, id);
        assert!(matches!(change(&event).news, News::Delete));
        assert_eq!(event.delivery.event_at, at);
    }
}
