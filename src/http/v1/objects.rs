//! `GET /v1/<table>` and `GET /v1/<table>/{clerk_id}` of every kind, and lists of related objects. Deleted objects are
//! not returned.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    routing::get,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value as Document, json, value::RawValue};
use utoipa::{IntoParams, openapi::path::ParameterIn};

use super::{
    Answer, Segment,
    query::{AFTER, Paging, Query, page},
    read,
};
use crate::{
    entity::{USER, user},
    http::{App, error::Problem},
    model::{ClerkId, Entity, Field, Holds, Kinds, Value, rfc3339},
    store::{Row, RowFilter},
};

const OF_USERS: &str = "allowed parameters are email, after and limit, each at most once";
const OF_OTHERS: &str = "allowed parameters are after and limit, each at most once";
const EMAIL: &str = "email: must be a complete address, with + written as %2B";

/// One page of rows of a kind.
#[derive(Serialize)]
pub(super) struct Page {
    /// The list, under the name of its table.
    #[serde(flatten)]
    rows: HashMap<&'static str, Vec<Shown>>,
    /// The value of `after` for the next page; none on the last one.
    next: Option<String>,
}

/// A row as the API shows it. Fields that are not synced are null.
pub(super) struct Shown {
    row: Row,
    /// The linking object, such as a membership, and its name.
    link: Option<(&'static str, Row)>,
}

impl From<Row> for Shown {
    fn from(row: Row) -> Self {
        Self { row, link: None }
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Row { id, object, preferences } = &self.row;
        let entity = object.clerk_id.entity();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", id)?;
        map.serialize_entry("clerk_id", &object.clerk_id)?;
        // The column with Clerk's whole object is shown only where it has a value.
        let fields = entity.fields().filter(|field| !field.is_raw() || object.profile[*field] != Value::Null);
        for field in fields {
            let name = field.name();
            match &object.profile[field] {
                Value::Null => map.serialize_entry(name, &())?,
                Value::Text(text) => map.serialize_entry(name, text)?,
                Value::Int(number) => map.serialize_entry(name, number)?,
                Value::Bool(truth) => map.serialize_entry(name, truth)?,
                Value::Time(time) => map.serialize_entry(name, &rfc3339(*time))?,
                Value::Json(text) => map.serialize_entry(name, &as_stored(text))?,
            }
        }
        if entity.has_preferences {
            map.serialize_entry("preferences", &as_stored(preferences.as_deref().unwrap_or("{}")))?;
        }
        map.serialize_entry("created_at", &object.created_at.map(rfc3339))?;
        map.serialize_entry("updated_at", &rfc3339(object.updated_at))?;
        map.serialize_entry("synced_at", &rfc3339(object.synced_at))?;
        map.serialize_entry("deleted_at", &object.deleted_at.map(rfc3339))?;
        if let Some((name, row)) = &self.link {
            map.serialize_entry(name, &Self::from(row.clone()))?;
        }
        map.end()
    }
}

/// JSON as it is stored. If the application stored something else in a JSON column, it is returned as a string.
fn as_stored(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .or_else(|_| serde_json::value::to_raw_value(text))
        .unwrap_or_default()
}

/// A row as the API shows it.
pub fn row_as_json(row: &Row) -> String {
    serde_json::to_string_pretty(&Shown::from(row.clone())).unwrap_or_default()
}

async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    entity: &'static Entity,
) -> Answer<Page> {
    let query = if *entity == USER {
        Query::read(query.as_deref(), &["email", "after", "limit"], OF_USERS)?
    } else {
        Query::read(query.as_deref(), &["after", "limit"], OF_OTHERS)?
    };
    let email = query.value("email", email, EMAIL)?;
    let (rows, next) = rows(&app, entity, email.map(|email| (user::EMAIL, email)), &query).await?;
    let rows = HashMap::from([(entity.table, rows.into_iter().map(Shown::from).collect())]);
    Ok(Json(Page { rows, next }))
}

async fn show(State(app): State<Arc<App>>, path: Segment, entity: &'static Entity) -> Answer<Shown> {
    Ok(Json(find(&app, id(entity, path)?).await?.into()))
}

/// The row of an object that is not deleted.
async fn find(app: &App, id: ClerkId) -> Result<Row, Problem> {
    let entity = id.entity();
    let row = read(app, async move |store| store.row(&id).await).await?;
    row.and_then(Row::standing).ok_or(Problem::ObjectNotFound(entity))
}

async fn belonging(
    State(app): State<Arc<App>>,
    path: Segment,
    RawQuery(query): RawQuery,
    of: Belonging,
) -> Answer<Page> {
    let query = Query::read(query.as_deref(), &["after", "limit"], OF_OTHERS)?;
    let id = id(of.parent, path)?;
    let parent = id.as_str().to_owned();
    find(&app, id).await?;
    let (rows, next) = rows(&app, of.field.entity(), Some((of.field, parent)), &query).await?;
    let rows = match (of.through, of.link()) {
        (Some((field, other)), Some(link)) => {
            let named = |row: &Row| ClerkId::new(other, row.object.profile[field].text()?);
            let ids: Vec<ClerkId> = rows.iter().filter_map(named).collect();
            let others = read(&app, async move |store| store.these(other, &ids).await).await?;
            let others: HashMap<ClerkId, Row> =
                others.into_iter().map(|row| (row.object.clerk_id.clone(), row)).collect();
            let linked = rows.into_iter().filter_map(|row| {
                Some(Shown { row: others.get(&named(&row)?)?.clone(), link: Some((link, row)) })
            });
            linked.collect()
        }
        _ => rows.into_iter().map(Shown::from).collect(),
    };
    Ok(Json(Page { rows: HashMap::from([(of.name(), rows)]), next }))
}

/// A page of rows, and the start of the next one.
async fn rows(
    app: &App,
    entity: &'static Entity,
    with: Option<(Field, String)>,
    query: &Query,
) -> Result<(Vec<Row>, Option<String>), Problem> {
    let after = query.value("after", |text| text.parse().ok(), AFTER)?;
    let limit = query.limit()?;
    let filter = RowFilter { with, after };
    let rows = read(app, async move |store| store.rows(entity, &filter, limit + 1).await).await?;
    Ok(page(rows, limit, |last| last.id.to_string()))
}

/// An invalid id is treated as an unknown object.
pub(super) fn id(entity: &'static Entity, path: Segment) -> Result<ClerkId, Problem> {
    let id = path.ok().filter(|Path(id)| is_text(id)).and_then(|Path(id)| ClerkId::new(entity, id));
    id.ok_or(Problem::ObjectNotFound(entity))
}

fn email(text: &str) -> Option<String> {
    let plausible = !text.is_empty() && is_text(text) && !text.contains(char::is_whitespace);
    plausible.then(|| text.to_owned())
}

/// Whether every database can search for it.
fn is_text(text: &str) -> bool {
    !text.contains('\0')
}

/// A relation: the objects of a kind whose `field` refers to the parent, or, `through` them, another object they refer to.
#[derive(Clone, Copy)]
struct Belonging {
    parent: &'static Entity,
    field: Field,
    through: Option<(Field, &'static Entity)>,
}

impl Belonging {
    /// The relations of these kinds to their parents.
    fn all(kinds: Kinds) -> impl Iterator<Item = Self> {
        let of = |(child, (field, parent)): (&'static Entity, (Field, &'static Entity))| {
            // An optional parent is one of several alternatives, so such an object does not link its parents to each other.
            let others = child.parents().filter(move |(other, _)| *other != field && !field.is_optional);
            [None].into_iter().chain(others.map(Some)).map(move |through| Self { parent, field, through })
        };
        let children = kinds.iter().flat_map(|child| child.parents().map(move |parent| (*child, parent)));
        children.flat_map(of)
    }

    /// The last part of its path: `memberships` of an organization, `organizations` of a user.
    fn name(self) -> &'static str {
        match self.through {
            Some((_, other)) => other.table,
            None => without(self.field.entity().table, self.parent),
        }
    }

    fn path(self) -> String {
        format!("/v1/{}/{{clerk_id}}/{}", self.parent.table, self.name())
    }

    /// The name under which the linking object appears in each entry.
    fn link(self) -> Option<&'static str> {
        let (_, other) = self.through?;
        Some(without(without(self.field.entity().kind, self.parent), other))
    }
}

/// A name without the kind's prefix.
pub(in crate::http) fn without(name: &'static str, entity: &Entity) -> &'static str {
    name.strip_prefix(entity.kind).and_then(|rest| rest.strip_prefix('_')).unwrap_or(name)
}

/// All routes of this file, for these kinds.
pub(super) fn routes(kinds: Kinds) -> Router<Arc<App>> {
    let each = kinds.iter().fold(Router::new(), |router, entity| {
        let (table, entity) = (entity.table, *entity);
        router
            .route(&format!("/v1/{table}"), get(move |app, query| list(app, query, entity)))
            .route(&format!("/v1/{table}/{{clerk_id}}"), get(move |app, path| show(app, path, entity)))
    });
    Belonging::all(kinds).fold(each, |router, of| {
        router.route(&of.path(), get(move |app, path, query| belonging(app, path, query, of)))
    })
}

/// Their paths and schemas in the format of `OpenAPI`.
pub(super) fn described(kinds: Kinds) -> (Map<String, Document>, Map<String, Document>) {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for entity in kinds.iter().copied() {
        let Entity { table, kind, .. } = *entity;
        let one = reference(entity);
        schemas.insert(schema_name(entity), schema(entity));

        let summary = format!("{}, in pages", words(table));
        let order =
            "In the order of `id`. Objects that exist when you read the first page appear exactly once.";
        let mut parameters = paging();
        if *entity == USER {
            parameters.push(json!({
                "name": "email", "in": "query", "required": false, "schema": { "type": "string" },
                "example": "ada@example.com",
                "description": "Only users with this e-mail address (case-insensitive); there can be several"
            }));
        }
        let rows = pages(table, &one);
        let list = operation(&format!("list_{table}"), (&summary, order), &parameters, &rows, None);
        paths.insert(format!("/v1/{table}"), list);

        let summary = capital(&format!("one {}", kind.replace('_', " ")));
        let path = format!("/v1/{table}/{{clerk_id}}");
        if entity.has_one {
            paths.insert(format!("{path}/ensure"), ensuring(entity, &summary, &one));
        }
        let show = operation(&format!("show_{kind}"), (&summary, ""), &[by_id(entity)], &one, Some(entity));
        paths.insert(path, show);
    }
    for of in Belonging::all(kinds) {
        let Belonging { parent, field, .. } = of;
        let shown = of.through.map_or(field.entity(), |(_, other)| other);
        let mut one = reference(shown);
        if let Some(link) = of.link() {
            one = schema(shown);
            one["properties"][link] = reference(field.entity());
        }
        let summary = format!("{} of one {}, in pages", words(of.name()), parent.kind.replace('_', " "));
        let mut parameters = paging();
        parameters.push(by_id(parent));
        let id = format!("list_{}_of_{}", of.name(), parent.kind);
        let rows = pages(of.name(), &one);
        paths.insert(of.path(), operation(&id, (&summary, ""), &parameters, &rows, Some(parent)));
    }
    (paths, schemas)
}

/// The name of the schema of a kind's rows: `OrganizationMembership`.
fn schema_name(entity: &Entity) -> String {
    entity.kind.split('_').map(capital).collect()
}

fn reference(entity: &Entity) -> Document {
    json!({ "$ref": format!("#/components/schemas/{}", schema_name(entity)) })
}

/// An identifier as words.
pub(in crate::http) fn words(name: &str) -> String {
    capital(&name.replace('_', " "))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn schema(entity: &'static Entity) -> Document {
    let time = |description: &str| json!({ "type": ["string", "null"], "format": "date-time", "description": description });
    let mut properties = Map::new();
    properties.insert(
        "id".to_owned(),
        json!({ "type": "integer", "format": "int64", "description": "The row's number in the database.", "example": 42 }),
    );
    properties.insert("clerk_id".to_owned(), json!({ "type": "string", "description": "Clerk's id" }));
    for field in entity.fields() {
        let described = match field.holds {
            Holds::Text => json!({ "type": ["string", "null"] }),
            Holds::Int => json!({ "type": ["integer", "null"], "format": "int64" }),
            Holds::Bool => json!({ "type": ["boolean", "null"] }),
            Holds::Time => json!({ "type": ["string", "null"], "format": "date-time" }),
            Holds::Json => json!({}),
        };
        properties.insert(field.name().to_owned(), described);
    }
    if entity.has_preferences {
        properties.insert("preferences".to_owned(), json!({ "description": "Belongs to the application." }));
    }
    for (name, description) in [
        ("created_at", "The time of creation, according to Clerk."),
        ("updated_at", "The time of the newest change, according to Clerk."),
        ("synced_at", "When the row was last written because of newer data."),
        ("deleted_at", ""),
    ] {
        properties.insert(name.to_owned(), time(description));
    }
    // The column with Clerk's whole object is missing in the answer where it has no value.
    let raw = entity.raw().map(Field::name);
    let required: Vec<&String> = properties.keys().filter(|name| Some(name.as_str()) != raw).collect();
    json!({
        "type": "object",
        "description": format!("A row of table `{}`. Fields that are not synced are null.", entity.table),
        "required": required,
        "properties": properties,
    })
}

fn pages(name: &str, one: &Document) -> Document {
    json!({
        "type": "object",
        "required": [name, "next"],
        "properties": {
            name: { "type": "array", "items": one },
            "next": {
                "type": ["string", "null"], "example": "42",
                "description": "The value of `after` for the next page; null on the last one."
            },
        },
    })
}

fn paging() -> Vec<Document> {
    let paging = Paging::into_params(|| Some(ParameterIn::Query));
    paging.into_iter().filter_map(|parameter| serde_json::to_value(parameter).ok()).collect()
}

fn by_id(entity: &Entity) -> Document {
    json!({
        "name": "clerk_id", "in": "path", "required": true, "schema": { "type": "string" },
        "description": "Clerk's id", "example": format!("{}29w83sxmDNGwOuEthce5gg56FcC", entity.id_prefix)
    })
}

/// The description of the request that ensures an object.
fn ensuring(entity: &Entity, what: &str, one: &Document) -> Document {
    let summary = format!("{what}, fetched from Clerk if it is missing");
    let description = "Concurrent requests for the same object cause one request to Clerk.";
    let id = format!("ensure_{}", entity.kind);
    let mut described = operation(&id, (&summary, description), &[by_id(entity)], one, None)["get"].take();
    described["responses"]["404"]["description"] =
        format!("`{}_not_found`: Clerk does not know it, or it was deleted", entity.kind).into();
    for (status, description) in [
        ("502", "`clerk_refused`: Clerk refused CLERK_SECRET_KEY or the request"),
        ("503", "`clerk_unavailable`, `clerk_not_configured` or `database_unavailable`: see the message"),
    ] {
        described["responses"][status]["description"] = description.into();
    }
    json!({ "post": described })
}

/// The description of a request and its answer. `missing` is the kind of the object that may not exist.
fn operation(
    id: &str,
    (summary, description): (&str, &str),
    parameters: &[Document],
    answer: &Document,
    missing: Option<&Entity>,
) -> Document {
    let content = json!({ "application/json": { "schema": answer } });
    let mut responses = json!({ "200": { "description": "The result", "content": content } });
    if let Some(entity) = missing {
        responses["404"]["description"] = format!("`{}_not_found`: unknown, or deleted", entity.kind).into();
    }
    json!({ "get": {
        "operationId": id, "summary": summary, "description": description, "parameters": parameters,
        "responses": responses, "tags": [],
    } })
}
