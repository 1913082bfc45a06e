//! `/users`: finding somebody by id or address, and all that is known of one user.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    deliveries::processed_table,
    form::Form,
    page::{button, fact, masked, moment, page, see, table, time, whereabouts},
    queue::queued_table,
    session::Session,
    trouble::{Segment, Trouble},
};
use crate::{
    entity::{USER, user},
    http::{App, error::Problem, v1::read},
    model::{ClerkId, Receipt, Register, Selection, SvixId, Value, Version},
    store::{
        AuditLine, DeliveryFilter, Processed, QueueFilter, Queued, Result as Stored, Row, RowFilter, Store,
    },
    sync::reveal,
};

/// Users of one address that are shown.
const FOUND: u32 = 50;

/// Lines of the audit trail that are shown, the newest.
const LINES: u32 = 500;

/// `GET /users`
pub(super) async fn search(Extension(session): Extension<Session>) -> Response {
    page(&session, "/users", "Users", &search_form(&session, None))
}

/// `POST /users`: by a body, because an address in a URL stands in histories and logs.
pub(super) async fn find(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    request: Request,
) -> Result<Response, Trouble> {
    let form = Form::read_own(&app, &session, request).await?;
    let sought = form.value("sought").unwrap_or_default().trim().to_owned();
    if !sought.contains('@') {
        return Ok(if is_plain(&sought) && ClerkId::new(&USER, sought.as_str()).is_some() {
            see(&format!("/users/{sought}"))
        } else {
            let nobody = "That is neither an id of Clerk's (user_…) nor an e-mail address.";
            page(&session, "/users", "Users", &search_form(&session, Some(nobody)))
        });
    }
    let filter = RowFilter { with: Some((user::EMAIL, sought.replace('\0', ""))), after: None };
    let rows = read(&app, async move |store| store.rows(&USER, &filter, FOUND).await).await?;
    let content = html! {
        (search_form(&session, rows.is_empty().then_some("Nobody here has this address.")))
        @if !rows.is_empty() {
            h2 { "Users of this address" }
            (found(&rows))
        }
    };
    Ok(page(&session, "/users", "Users", &content))
}

fn found(rows: &[Row]) -> Markup {
    let rows: Vec<Vec<Markup>> = rows
        .iter()
        .map(|row| {
            vec![
                html! { a href=(whereabouts("/users", row.user.clerk_id.as_str())) { (row.user.clerk_id) } },
                shown(&row.user.profile[user::FIRST_NAME], false),
                html! { @if let Some(at) = row.user.created_at { (moment(at)) } },
                moment(row.user.synced_at),
            ]
        })
        .collect();
    table("Users", &[("User", "id"), ("Name", ""), ("Signed up", ""), ("Written", "")], "", &rows)
}

fn search_form(session: &Session, complaint: Option<&str>) -> Markup {
    html! {
        form.search method="post" action="/users" role="search" {
            input type="hidden" name="csrf" value=(session.csrf);
            label for="sought" { "Clerk's id, or an e-mail address" }
            input id="sought" name="sought" autocomplete="off" spellcheck="false" required;
            button { "Find" }
        }
        @if let Some(complaint) = complaint { p.complaint role="alert" { (complaint) } }
        p.note { "One person at a time, masked until you reveal it. Every reveal stands in the audit trail." }
    }
}

/// Ids of Clerk's are letters, digits and underscores: nothing else is put into a URL.
fn is_plain(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// All that is known of a user.
struct Known {
    id: ClerkId,
    row: Option<Row>,
    register: Option<Register>,
    waiting: Vec<Queued>,
    deliveries: Vec<Processed>,
    trail: Vec<AuditLine>,
    receipts: Vec<Receipt>,
}

impl Known {
    /// Whether all there is is a tombstone: nobody of this id was ever here, or there would be lines and receipts.
    fn is_deleted_stranger(&self) -> bool {
        let is_deleted = self.register.as_ref().is_some_and(|register| register.deleted);
        is_deleted && self.row.is_none() && self.trail.is_empty() && self.receipts.is_empty()
    }
}

/// `GET /users/{clerk_id}`
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Segment(id): Segment,
) -> Result<Response, Trouble> {
    show_user(&app, &session, &id, false).await
}

/// `POST /users/{clerk_id}`: the same with what the person's data is, once that is written down.
pub(super) async fn reveal(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Segment(id): Segment,
    request: Request,
) -> Result<Response, Trouble> {
    Form::read_own(&app, &session, request).await?;
    let (clerk_id, now) = (named(&id)?, (app.clock)());
    let recorded = read(&app, async move |store| {
        // Of whom nothing is here nothing is shown, also if it comes in the next moment.
        if store.row(&clerk_id).await?.is_none() {
            return Ok(false);
        }
        reveal::reveal(&*store, &clerk_id, now).await.map(|()| true)
    })
    .await?;
    show_user(&app, &session, &id, recorded).await
}

/// Who can be meant by what stands in a path.
fn named(id: &str) -> Result<ClerkId, Problem> {
    ClerkId::new(&USER, id).filter(|id| !id.as_str().contains('\0')).ok_or(Problem::NotFound)
}

async fn show_user(app: &App, session: &Session, id: &str, revealed: bool) -> Result<Response, Trouble> {
    let known = load(app, named(id)?).await?;
    if known.row.is_none() && known.register.is_none() && known.trail.is_empty() && known.waiting.is_empty() {
        let content = html! { p { "Nobody of this id was ever here." } (search_form(session, None)) };
        let mut page = page(session, "/users", "Nobody", &content);
        *page.status_mut() = StatusCode::NOT_FOUND;
        return Ok(page);
    }
    Ok(page(session, "/users", id, &content(session, &known, (app.clock)(), revealed)).into_response())
}

/// The end of the trail, the newest first.
async fn newest_lines(store: &dyn Store, id: &ClerkId) -> Stored<Vec<AuditLine>> {
    let mut newest: Vec<AuditLine> = Vec::new();
    loop {
        let page = store.audit_trail(id, newest.last().map(|line| line.id), LINES).await?;
        if page.is_empty() {
            break;
        }
        newest.extend(page);
        newest.drain(..newest.len().saturating_sub(LINES as usize));
    }
    newest.reverse();
    Ok(newest)
}

async fn load(app: &App, id: ClerkId) -> Result<Known, Problem> {
    read(app, async move |store| {
        let ids = [id.clone()];
        let row = store.row(&id).await?;
        // One that was only locked, while a delivery was parked, says nothing.
        let register = store.known(&ids, &Selection::default()).await?.registers.remove(&id);
        let register = register.filter(|register| register.version != Version::BLANK || register.deleted);
        let trail = newest_lines(&*store, &id).await?;
        let receipts = store.receipts_of(&id).await?;
        // Those that changed anything, and the last one that was news.
        let mut caused: Vec<SvixId> =
            trail.iter().filter_map(|line| SvixId::new(line.svix_id.clone()?)).collect();
        caused.extend(register.as_ref().and_then(|register| SvixId::new(register.version.tie.as_str())));
        caused.sort();
        caused.dedup();
        let filter = DeliveryFilter { ids: Some(caused), ..DeliveryFilter::default() };
        let deliveries = store.deliveries(&filter, LINES + 1).await?;
        let filter = QueueFilter { clerk_id: Some(id.clone()), ..QueueFilter::default() };
        let waiting = store.queued(&filter, LINES).await?;
        Ok(Known { id, row, register, waiting, deliveries, trail, receipts })
    })
    .await
}

fn why_no_row(known: &Known) -> &'static str {
    match &known.register {
        Some(_) if known.is_deleted_stranger() => {
            "There is no row: the deletion came before anything else of this user."
        }
        Some(register) if register.deleted => "There is no row: the user is deleted.",
        _ if !known.waiting.is_empty() => {
            "There is no row yet: what came of the user waits, or could not be applied."
        }
        _ => "There is no row.",
    }
}

fn content(session: &Session, known: &Known, now: DateTime<Utc>, revealed: bool) -> Markup {
    let Known { id, row, register, waiting, deliveries, trail, receipts } = known;
    html! {
        h2 { "Row" }
        @match row {
            None => p.nothing { (why_no_row(known)) },
            Some(row) => {
                dl.facts {
                    (fact("Number", &html! { (row.id) }))
                    (fact("Signed up", &row.user.created_at.map_or(html! { "unknown" }, |at| time(now, at))))
                    (fact("Changed at Clerk",
                        &row.user.known_updated_at().map_or(html! { "unknown" }, |at| time(now, at))))
                    (fact("Written here", &time(now, row.user.synced_at)))
                    (fact("Deleted", &row.user.deleted_at.map_or(html! { "no" }, |at| time(now, at))))
                }
                table.profile {
                    tbody { @for field in USER.fields() {
                        @let value = &row.user.profile[field];
                        @if *value != Value::Null {
                            tr { th scope="row" { (field.name()) } td { (shown(value, revealed)) } }
                        }
                    } }
                }
                @if revealed {
                    p.note { "That this was shown stands in the audit trail below." }
                } @else {
                    (button(session, &whereabouts("/users", id.as_str()), "reveal", "Reveal, and record that", "quiet"))
                }
            }
        }
        h2 { "Version" }
        @match register {
            None => p.nothing { "There is no register: no event has come." },
            Some(register) => dl.facts {
                (fact("Newest", &moment_of(register.version.version)))
                (fact("Event of", &moment_of(register.version.event_at)))
                (fact("By delivery", &html! { @if register.version.tie.is_empty() { "none: read from Clerk, or by command" } @else { code { (register.version.tie) } } }))
                (fact("Deleted for good", &html! { (if register.deleted { "yes" } else { "no" }) }))
                @if let Some(until) = register.held_until {
                    (fact("Erasure held back until", &time(now, until)))
                }
            }
        }
        h2 { "Deliveries" }
        p.note { "Those that changed anything, and the last that was news." }
        @if !waiting.is_empty() { h3 { "Not applied yet" } (queued_table(waiting, now, "")) h3 { "Applied" } }
        (processed_table(deliveries, now, false))
        h2 { "Audit trail" }
        @if known.is_deleted_stranger() {
            p.nothing { "Deleted before anybody of this id was here: nothing was kept, so there is nothing to tell." }
        } @else {
            (audited(trail))
        }
        @if !receipts.is_empty() { h2 { "Erasure" } (confirmed(receipts)) }
    }
}

/// What was done, the newest first.
fn audited(trail: &[AuditLine]) -> Markup {
    let rows: Vec<Vec<Markup>> = trail
        .iter()
        .map(|line| {
            vec![
                moment(line.at),
                html! { (line.action) },
                html! { (line.changed_fields.join(", ")) },
                html! { (line.source) },
                html! { (line.svix_id.as_deref().unwrap_or_default()) },
            ]
        })
        .collect();
    let columns = [("When", ""), ("What", ""), ("Fields", "why"), ("Source", ""), ("Delivery", "id")];
    table("Audit trail", &columns, "Nothing has happened yet.", &rows)
}

/// Who has confirmed an erasure, and who has not.
fn confirmed(receipts: &[Receipt]) -> Markup {
    let rows: Vec<Vec<Markup>> = receipts
        .iter()
        .map(|receipt| {
            vec![
                html! { (receipt.destination) },
                moment(receipt.requested_at),
                html! { @match receipt.completed_at { Some(at) => (moment(at)), None => "not yet" } },
                html! { (receipt.last_error.as_deref().unwrap_or_default()) },
            ]
        })
        .collect();
    let columns = [("Destination", ""), ("Asked for", ""), ("Done", ""), ("Why not", "why")];
    table("Erasure", &columns, "", &rows)
}

fn moment_of(milliseconds: i64) -> Markup {
    DateTime::from_timestamp_millis(milliseconds).map_or(html! { (milliseconds) }, moment)
}

/// What a field has, or that it has something.
fn shown(value: &Value, revealed: bool) -> Markup {
    let text = match value {
        Value::Null => return html! {},
        Value::Text(text) | Value::Json(text) => text.clone(),
        // Says of nobody who they are.
        Value::Int(number) => return html! { (number) },
        Value::Bool(truth) => return html! { (truth) },
        Value::Time(at) => return moment(*at),
    };
    html! { @if revealed { bdi { (text) } } @else { span.masked { (masked(&text)) } } }
}
