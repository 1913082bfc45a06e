//! `/<table>` and `/<table>/{clerk_id}` of every kind: searching for an object, and everything that is known about one.
//!
//! People are found one at a time, by id or address; other kinds also have a list. Values that may be personal, and values
//! that Clerk shows to no browser, are masked until they are revealed: the declaration of a kind defines which columns
//! these are.

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawQuery, Request},
    http::StatusCode,
    response::Response,
    routing::get,
};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    Answer,
    deliveries::processed_table,
    error_page::Segment,
    form::Form,
    page::{
        Column, Query, ROWS, button, fact, folder, linked, masked, moment, next_page, page, parameters,
        plural, see, singular, table, time, whereabouts,
    },
    queue::queued_table,
    session::{Session, Visit},
};
use crate::{
    http::{
        App,
        error::Problem,
        v1::{objects::words, query::page as cut, read},
    },
    model::{
        Anonymized, ClerkId, Entity, Field, Holds, Kinds, Receipt, Register, Selection, Source, SvixId, Value,
    },
    store::{AuditLine, DeliveryFilter, Processed, QueueFilter, Queued, Row, RowFilter},
    sync::reveal,
};

/// Users of one address that are shown.
const FOUND: u32 = 50;

/// The newest lines of the audit trail that are shown.
const LINES: u32 = 500;

/// Every route of this file, for these kinds.
pub(super) fn routes(kinds: Kinds) -> Router<Arc<App>> {
    kinds.iter().copied().fold(Router::new(), |router, entity| {
        let all = get(move |visit, query| list(visit, query, entity))
            .post(move |visit, request| find(visit, request, entity));
        let one = get(move |visit, id| show(visit, id, entity))
            .post(move |visit, id, request| reveal(visit, id, request, entity));
        router.route(&folder(entity), all).route(&format!("{}/{{clerk_id}}", folder(entity)), one)
    })
}

/// `GET /<table>`, optionally limited to the objects of a parent: `?organization_id=org_1`
async fn list(Visit { app, session }: Visit, RawQuery(query): RawQuery, entity: &'static Entity) -> Answer {
    let mut content = search_form(&session, entity, None);
    if !app.selection.has(entity) {
        content = html! {
            (content)
            p.note { code { "SYNC_ENTITIES" } " does not include this kind: these rows are left over from before." }
        };
    }
    if !entity.is_person() {
        let filter = filter(entity, query.as_deref());
        let asked = filter.clone();
        let rows = read(&app, async move |store| store.rows(entity, &asked, ROWS + 1).await).await?;
        let parent = filter.with.and_then(|(field, id)| Some((field, ClerkId::new(field.parent?, id)?)));
        let (rows, next) =
            cut(rows, ROWS, |last| after(parent.as_ref().map(|(field, id)| (*field, id)), last));
        content = html! {
            (content)
            @if let Some((field, parent)) = &parent { p.note { (words(field.name())) ": " (linked(parent)) } }
            (rows_table(entity, &rows, (app.clock)(), None))
            (next_page("Next", &folder(entity), next))
        };
    }
    Ok(title_page(&app, &session, entity, &content))
}

fn title_page(app: &App, session: &Session, entity: &'static Entity, content: &Markup) -> Response {
    page(app, session, &folder(entity), &words(plural(entity)), content)
}

/// Values that cannot be parsed are ignored.
fn filter(entity: &'static Entity, query: Option<&str>) -> RowFilter {
    let asked = parameters(query);
    let with =
        entity.parents().find_map(|(field, _)| Some((field, asked.get(field.name())?.replace('\0', ""))));
    RowFilter { with, after: asked.get("after").and_then(|after| after.parse().ok()) }
}

/// The query for the rows after this one.
fn after(of: Option<(Field, &ClerkId)>, last: &Row) -> Query {
    let of = of.map(|(field, id)| (field.name(), id.to_string()));
    of.into_iter().chain([("after", last.id.to_string())]).collect()
}

/// `POST /<table>`: by a body, because an address in a URL would end up in histories and logs.
async fn find(Visit { app, session }: Visit, request: Request, entity: &'static Entity) -> Answer {
    let form = Form::read_own(&app, &session, request).await?;
    let sought = form.value("sought").unwrap_or_default().trim().to_owned();
    let address = address(entity).filter(|_| sought.contains('@'));
    let Some(address) = address else {
        // Clerk's ids consist of letters, digits and underscores: nothing else is put into a URL.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        return Ok(match ClerkId::new(entity, sought).filter(|id| id.as_str().bytes().all(is_plain)) {
            Some(id) => see(&whereabouts(&folder(entity), id.as_str())),
            None => title_page(&app, &session, entity, &search_form(&session, entity, Some(&no_id(entity)))),
        });
    };
    let filter = RowFilter { with: Some((address, sought.replace('\0', ""))), after: None };
    let rows = read(&app, async move |store| store.rows(entity, &filter, FOUND).await).await?;
    let content = html! {
        (search_form(&session, entity, rows.is_empty().then_some("There is nothing with this address.")))
        @if !rows.is_empty() {
            h2 { (words(plural(entity))) " with this address" }
            (rows_table(entity, &rows, (app.clock)(), None))
        }
    };
    Ok(title_page(&app, &session, entity, &content))
}

/// The address column by which objects of a kind are found.
fn address(entity: &'static Entity) -> Option<Field> {
    entity.fields().find(|field| field.anonymized == Anonymized::Address)
}

/// Rows of a kind with their parents, except the parent on whose page they are shown.
fn rows_table(entity: &'static Entity, rows: &[Row], now: DateTime<Utc>, but: Option<Field>) -> Markup {
    let parents = entity.parents().filter(|(field, _)| Some(*field) != but);
    let parents = parents.map(|(field, parent)| (field, words(singular(parent)), "id"));
    // The first text column that is neither an id nor an address distinguishes objects.
    let label = entity.fields().find(|field| {
        field.holds == Holds::Text && field.parent.is_none() && field.anonymized != Anonymized::Address
    });
    let label = label.map(|field| (field, words(field.name()), "name"));
    let fields: Vec<(Field, String, &str)> = parents.chain(label).collect();
    let one = words(singular(entity));
    let mut columns: Vec<Column<'_>> = vec![(&one, "id")];
    columns.extend(fields.iter().map(|(_, name, class)| (name.as_str(), *class)));
    columns.extend([(created(entity), ""), ("Written", "")]);
    let cells = |row: &Row| {
        let mut cells = vec![linked(&row.object.clerk_id)];
        cells.extend(fields.iter().map(|(field, ..)| shown(*field, &row.object.profile[*field], false)));
        cells.push(html! { @if let Some(at) = row.object.created_at { (time(now, at)) } });
        cells.push(time(now, row.object.synced_at));
        cells
    };
    table(&words(plural(entity)), &columns, "There are none.", rows, cells)
}

/// The label of the creation time.
fn created(entity: &Entity) -> &'static str {
    if entity.is_person() { "Signed up" } else { "Created" }
}

fn search_form(session: &Session, entity: &'static Entity, complaint: Option<&str>) -> Markup {
    let by_address = address(entity).is_some();
    html! {
        form.search method="post" action=(folder(entity)) role="search" {
            input type="hidden" name="csrf" value=(session.csrf);
            label for="sought" { "Clerk's id" @if by_address { ", or an e-mail address" } }
            input id="sought" name="sought" autocomplete="off" spellcheck="false" required;
            button { "Find" }
        }
        @if let Some(complaint) = complaint { p.complaint role="alert" { (complaint) } }
        @if entity.is_person() {
            p.note { "One person at a time, masked until you reveal the data. The audit trail records every reveal." }
        }
    }
}

fn no_id(entity: &'static Entity) -> String {
    let form =
        if entity.id_prefix.is_empty() { String::new() } else { format!(" ({}…)", entity.id_prefix) };
    match address(entity) {
        Some(_) => format!("This is neither a Clerk id{form} nor an e-mail address."),
        None => format!("This is not a Clerk id{form}."),
    }
}

/// Everything that is known about an object.
struct Known {
    id: ClerkId,
    row: Option<Row>,
    register: Option<Register>,
    waiting: Vec<Queued>,
    deliveries: Vec<Processed>,
    trail: Vec<AuditLine>,
    receipts: Vec<Receipt>,
    /// The object's children, by the columns that refer to it: a page of rows, and the query for the next page.
    children: Vec<(Field, Vec<Row>, Option<Query>)>,
}

impl Known {
    /// Whether nothing is known about it.
    fn is_stranger(&self) -> bool {
        self.row.is_none()
            && self.register.is_none()
            && self.trail.is_empty()
            && self.waiting.is_empty()
            && self.children.iter().all(|(_, rows, _)| rows.is_empty())
    }

    /// Whether only a tombstone exists: the object was never stored, or there would be audit lines and receipts.
    fn is_deleted_stranger(&self) -> bool {
        let is_deleted = self.register.as_ref().is_some_and(|register| register.deleted);
        is_deleted && self.row.is_none() && self.trail.is_empty() && self.receipts.is_empty()
    }
}

/// `GET /<table>/{clerk_id}`
async fn show(Visit { app, session }: Visit, Segment(id): Segment, entity: &'static Entity) -> Answer {
    show_one(&app, &session, named(entity, &id)?, false).await
}

/// `POST /<table>/{clerk_id}`: the same page without masks, once the reveal is recorded.
async fn reveal(
    Visit { app, session }: Visit,
    Segment(id): Segment,
    request: Request,
    entity: &'static Entity,
) -> Answer {
    Form::read_own(&app, &session, request).await?;
    let (id, now) = (named(entity, &id)?, (app.clock)());
    let clerk_id = id.clone();
    let recorded = read(&app, async move |store| {
        // An object without a row is not revealed, even if its row arrives a moment later: that reveal would not be recorded.
        if store.row(&clerk_id).await?.is_none() {
            return Ok(false);
        }
        reveal::reveal(&*store, &clerk_id, None, Source::Dashboard, now).await.map(|()| true)
    })
    .await?;
    show_one(&app, &session, id, recorded).await
}

/// The id in a path.
fn named(entity: &'static Entity, id: &str) -> Result<ClerkId, Problem> {
    ClerkId::new(entity, id).filter(|id| !id.as_str().contains('\0')).ok_or(Problem::NotFound)
}

async fn show_one(app: &App, session: &Session, id: ClerkId, revealed: bool) -> Answer {
    let known = load(app, id).await?;
    let entity = known.id.entity();
    if known.is_stranger() {
        let title = if entity.is_person() { "No such person" } else { "No such object" };
        let content =
            html! { p { (title) ": this id was never used here." } (search_form(session, entity, None)) };
        let mut page = page(app, session, &folder(entity), title, &content);
        *page.status_mut() = StatusCode::NOT_FOUND;
        return Ok(page);
    }
    let content = content(session, &known, (app.clock)(), revealed);
    Ok(page(app, session, &folder(entity), known.id.as_str(), &content))
}

async fn load(app: &App, id: ClerkId) -> Result<Known, Problem> {
    let parents = app.selection.entities().flat_map(Entity::parents);
    let naming: Vec<Field> =
        parents.filter(|(_, parent)| *parent == id.entity()).map(|(field, _)| field).collect();
    read(app, async move |store| {
        let ids = [id.clone()];
        let row = store.row(&id).await?;
        let register = store.known(&ids, &Selection::default()).await?.registers.remove(&id);
        let register = register.filter(|register| !register.is_blank());
        let trail = store.newest_lines(&id, LINES).await?;
        let receipts = store.receipts_of(&id).await?;
        // Deliveries that changed something, and the last one with a newer version.
        let mut caused: Vec<SvixId> =
            trail.iter().filter_map(|line| SvixId::new(line.svix_id.clone()?)).collect();
        caused.extend(register.as_ref().and_then(|register| SvixId::new(register.version.tie.as_str())));
        caused.sort();
        caused.dedup();
        let filter = DeliveryFilter { ids: Some(caused), ..DeliveryFilter::default() };
        let deliveries = store.deliveries(&filter, LINES + 1).await?;
        let filter = QueueFilter { clerk_id: Some(id.clone()), ..QueueFilter::default() };
        let waiting = store.queued(&filter, LINES).await?;
        let mut children = Vec::new();
        for field in naming {
            let filter = RowFilter { with: Some((field, id.as_str().to_owned())), after: None };
            let rows = store.rows(field.entity(), &filter, ROWS + 1).await?;
            let (rows, next) = cut(rows, ROWS, |last| after(Some((field, &id)), last));
            children.push((field, rows, next));
        }
        Ok(Known { id, row, register, waiting, deliveries, trail, receipts, children })
    })
    .await
}

fn why_no_row(known: &Known) -> String {
    let one = singular(known.id.entity());
    match &known.register {
        Some(_) if known.is_deleted_stranger() => {
            format!("There is no row: the deletion arrived before any other event about this {one}.")
        }
        Some(register) if register.deleted => format!("There is no row: the {one} is deleted."),
        _ if !known.waiting.is_empty() => {
            format!("There is no row yet: the events about this {one} are waiting, or could not be applied.")
        }
        _ => "There is no row.".to_owned(),
    }
}

fn content(session: &Session, known: &Known, now: DateTime<Utc>, revealed: bool) -> Markup {
    let Known { id, row, register, waiting, deliveries, trail, receipts, children } = known;
    let entity = id.entity();
    html! {
        h2 { "Row" }
        @match row {
            None => p.nothing { (why_no_row(known)) },
            Some(row) => {
                dl.facts {
                    (fact("Number", &html! { (row.id) }))
                    (fact(created(entity), &row.object.created_at.map_or(html! { "unknown" }, |at| time(now, at))))
                    (fact("Changed at Clerk",
                        &row.object.known_updated_at().map_or(html! { "unknown" }, |at| time(now, at))))
                    (fact("Written here", &time(now, row.object.synced_at)))
                    (fact("Deleted", &row.object.deleted_at.map_or(html! { "no" }, |at| time(now, at))))
                }
                table.profile {
                    tbody { @for (field, value) in values(row) {
                        tr { th scope="row" { (field.name()) } td { (shown(field, value, revealed)) } }
                    } }
                }
                @if revealed {
                    p.note { "The audit trail below records that this was revealed." }
                } @else if values(row).any(|(field, _)| is_masked(field)) {
                    (button(session, &whereabouts(&folder(entity), id.as_str()), "reveal", "Reveal (recorded)", "quiet"))
                }
            }
        }
        @for (field, rows, next) in children {
            h2 { (words(plural(field.entity()))) }
            (rows_table(field.entity(), rows, now, Some(*field)))
            (next_page("Next", &folder(field.entity()), next.clone()))
        }
        h2 { "Version" }
        @match register {
            None => p.nothing { "There is no version register: no event has arrived." },
            Some(register) => dl.facts {
                (fact("Newest", &moment_of(register.version.version)))
                (fact("Event of", &moment_of(register.version.event_at)))
                (fact("By delivery", &html! { @if register.version.tie.is_empty() { "none: from Clerk's API, or a command" } @else { code { (register.version.tie) } } }))
                (fact("Deleted permanently", &html! { (if register.deleted { "yes" } else { "no" }) }))
                @if let Some(until) = register.held_until {
                    (fact("Erasure delayed until", &time(now, until)))
                }
            }
        }
        h2 { "Deliveries" }
        p.note { "Deliveries that changed something, and the last one with a newer version." }
        @if !waiting.is_empty() { h3 { "Not applied yet" } (queued_table(waiting, now, "")) h3 { "Applied" } }
        (processed_table(deliveries, now, None))
        h2 { "Audit trail" }
        @if known.is_deleted_stranger() {
            p.nothing {
                "Deleted before any " (if entity.is_person() { "person" } else { "object" })
                " with this id was stored, so there is no audit trail."
            }
        } @else {
            (audited(trail))
        }
        @if !receipts.is_empty() { h2 { "Erasure" } (confirmed(receipts)) }
    }
}

/// The audit trail, newest first.
fn audited(trail: &[AuditLine]) -> Markup {
    let columns = [("When", ""), ("Action", ""), ("Fields", "why"), ("Source", ""), ("Delivery", "id")];
    table("Audit trail", &columns, "Nothing has happened yet.", trail, |line| {
        vec![
            moment(line.at),
            html! { (line.action) },
            html! { (line.changed_fields.join(", ")) },
            html! { (line.source) },
            html! { (line.svix_id.as_deref().unwrap_or_default()) },
        ]
    })
}

/// The destinations of an erasure, and whether each confirmed it.
fn confirmed(receipts: &[Receipt]) -> Markup {
    let columns = [("Destination", ""), ("Requested", ""), ("Completed", ""), ("Error", "why")];
    table("Erasure", &columns, "", receipts, |receipt| {
        vec![
            html! { (receipt.destination) },
            moment(receipt.requested_at),
            html! { @match receipt.completed_at { Some(at) => (moment(at)), None => "not yet" } },
            html! { (receipt.last_error.as_deref().unwrap_or_default()) },
        ]
    })
}

fn moment_of(milliseconds: i64) -> Markup {
    DateTime::from_timestamp_millis(milliseconds).map_or(html! { (milliseconds) }, moment)
}

/// The synced values of a row.
fn values(row: &Row) -> impl Iterator<Item = (Field, &Value)> {
    let values = row.object.clerk_id.entity().fields().map(|field| (field, &row.object.profile[field]));
    values.filter(|(_, value)| **value != Value::Null)
}

/// Whether a column is shown only on request. Values that an anonymised row keeps are not personal, and numbers, times and
/// booleans do not identify anyone.
fn is_masked(field: Field) -> bool {
    let is_said = field.anonymized == Anonymized::Kept && !field.name().starts_with("private_");
    matches!(field.holds, Holds::Text | Holds::Json) && !is_said
}

/// The value of a field, or a mask.
fn shown(field: Field, value: &Value, revealed: bool) -> Markup {
    let text = match value {
        Value::Null => return html! {},
        Value::Text(text) | Value::Json(text) => text.clone(),
        Value::Int(number) => return html! { (number) },
        Value::Bool(truth) => return html! { (truth) },
        Value::Time(at) => return moment(*at),
    };
    if is_masked(field) && !revealed {
        return html! { span.masked { (masked(&text)) } };
    }
    let parent = field.parent.and_then(|parent| ClerkId::new(parent, text.as_str()));
    parent.map_or_else(|| html! { bdi { (text) } }, |parent| linked(&parent))
}
