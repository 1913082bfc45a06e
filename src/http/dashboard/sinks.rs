//! `/sinks`: what waits for each, what was not taken and why, and pausing them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Path, RawQuery, Request, State},
    response::Response,
};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    form::Form,
    page::{ROWS, asking, count, fact, grouped, page, see, time, whereabouts},
    session::Session,
    verdict::HELD_UP,
};
use crate::{
    http::{
        App,
        error::Problem,
        v1::{query::page as cut, read},
    },
    store::{MessageFilter, MessageState, SinkDepth, StoredMessage},
    work::outbox::{Selection, discard, retry},
};

/// What is known of all sinks: those that are configured, and those that anything waits for.
struct Sinks {
    depth: BTreeMap<String, SinkDepth>,
    paused: BTreeMap<String, DateTime<Utc>>,
    names: BTreeSet<String>,
}

async fn load(app: &App) -> Result<Sinks, Problem> {
    let (depth, paused) =
        read(app, async |store| Ok((store.outbox_depth().await?, store.paused_sinks().await?))).await?;
    let depth: BTreeMap<_, _> = depth.into_iter().map(|depth| (depth.sink.clone(), depth)).collect();
    let paused: BTreeMap<_, _> = paused.into_iter().collect();
    let names = app.dashboard.sinks.iter().chain(depth.keys()).chain(paused.keys()).cloned().collect();
    Ok(Sinks { depth, paused, names })
}

/// `GET /sinks`
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
) -> Result<Response, Problem> {
    let sinks = load(&app).await?;
    let now = (app.clock)();
    let content = html! {
        @if sinks.names.is_empty() {
            p.nothing { "None is configured. Other systems are told of users by a table each in " code { "clerk-sync.toml" } "." }
        } @else {
            div.scroll tabindex="0" { table {
                thead { tr {
                    th { "Sink" } th { "State" } th.number { "Waiting" } th.number { "Dead" } th { "Oldest waits since" }
                } }
                tbody { @for name in &sinks.names {
                    @let depth = sinks.depth.get(name);
                    tr {
                        td { a href={ "/sinks/" (name) } { (name) } }
                        td { (state(name, &sinks, &app)) }
                        td.number { (grouped(depth.map_or(0, |depth| depth.pending))) }
                        td.number { (grouped(depth.map_or(0, |depth| depth.dead))) }
                        td { @if let Some(oldest) = depth.and_then(|depth| depth.oldest) { (time(now, oldest)) } }
                    }
                } }
            } }
        }
    };
    Ok(page(&session, "/sinks", "Sinks", &content))
}

fn state(name: &String, sinks: &Sinks, app: &App) -> Markup {
    let now = (app.clock)();
    let oldest = sinks.depth.get(name).and_then(|depth| depth.oldest);
    let (class, word) = if sinks.paused.contains_key(name) {
        ("pending", "paused")
    } else if oldest.is_some_and(|oldest| now - oldest > HELD_UP) {
        ("dead", "behind")
    } else if app.dashboard.sinks.contains(name) {
        ("applied", "on")
    } else {
        ("dead", "not configured")
    };
    html! { span.tag.{ (class) } { (word) } }
}

/// `GET /sinks/{sink}`
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let sinks = load(&app).await?;
    if !sinks.names.contains(&name) {
        return Err(Problem::NotFound);
    }
    let none_dead = sinks.depth.get(&name).is_none_or(|depth| depth.dead == 0);
    let state_at_first = if none_dead { MessageState::Pending } else { MessageState::Dead };
    let mut filter = MessageFilter { sink: Some(name.clone()), state: Some(state_at_first), after: None };
    for (parameter, value) in url::form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes()) {
        match &*parameter {
            "state" => filter.state = MessageState::named(&value),
            "after" => filter.after = value.parse().ok(),
            _ => {}
        }
    }
    let chosen = filter.state;
    let messages = read(&app, async move |store| store.messages(&filter, ROWS + 1).await).await?;
    let (messages, more) = cut(messages, ROWS);
    let word = |state: Option<MessageState>| state.map_or("all", MessageState::name);
    let next = messages
        .last()
        .filter(|_| more)
        .map(|last| format!("/sinks/{name}?state={}&after={}", word(chosen), last.id));
    let now = (app.clock)();
    let path = format!("/sinks/{name}");
    let dead = sinks.depth.get(&name).map_or(0, |depth| depth.dead);
    let content = html! {
        dl.facts {
            (fact("State", &state(&name, &sinks, &app)))
            (fact("Waiting", &html! { (grouped(sinks.depth.get(&name).map_or(0, |depth| depth.pending))) }))
            (fact("Dead", &html! { (grouped(dead)) }))
            @if let Some(since) = sinks.paused.get(&name) { (fact("Paused", &time(now, *since))) }
        }
        div.deeds {
            @if sinks.paused.contains_key(&name) {
                (asking(&session, &path, "resume", "Resume", "What waits goes out again."))
            } @else {
                (asking(&session, &path, "pause", "Pause", "Messages wait until you resume it; nothing is lost."))
            }
            @if dead > 0 {
                (asking(&session, &path, "retry", "Retry all that are dead",
                    &format!("{} will be sent again.", count(dead, "message", "messages"))))
                (asking(&session, &path, "discard", "Discard all that are dead",
                    "The sink will never hear of these changes. Deletions stay."))
            }
        }
        h2 { "Messages" }
        nav.tabs aria-label="State" {
            @for other in [Some(MessageState::Dead), Some(MessageState::Pending), Some(MessageState::Delivered), None] {
                a href={ (path) "?state=" (word(other)) } aria-current=[(other == chosen).then_some("true")] { (word(other)) }
            }
        }
        (table(&messages, now))
        @if let Some(next) = next { p { a href=(next) { "More" } } }
    };
    Ok(page(&session, "/sinks", &name, &content))
}

fn table(messages: &[StoredMessage], now: DateTime<Utc>) -> Markup {
    if messages.is_empty() {
        return html! { p.nothing { "There are none." } };
    }
    html! {
        div.scroll tabindex="0" { table {
            thead { tr {
                th.number { "Number" } th { "What" } th { "User" } th { "State" } th { "Written" } th.number { "Tries" } th { "Why" }
            } }
            tbody { @for message in messages {
                tr {
                    td.number { (message.id) }
                    td { (message.kind) }
                    td { a href=(whereabouts("/users", message.clerk_id.as_str())) { (message.clerk_id) } }
                    td { span.tag.{ (message.state.name()) } { (message.state.name()) } }
                    td { (time(now, message.created_at)) }
                    td.number { (message.attempts) }
                    td.why { (message.last_error.as_deref().unwrap_or_default()) }
                }
            } }
        } }
    }
}

/// `POST /sinks/{sink}`
pub(super) async fn act(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let form = Form::read_own(&app, &session, request).await?;
    if !load(&app).await?.names.contains(&name) {
        return Err(Problem::NotFound);
    }
    let now = (app.clock)();
    let sink = name.clone();
    match form.value("action") {
        Some("pause") => read(&app, async move |store| store.pause_sink(&sink, now).await).await?,
        Some("resume") => _ = read(&app, async move |store| store.resume_sink(&sink).await).await?,
        Some("retry") => {
            _ = read(&app, async move |store| retry(&*store, &Selection::Sink(sink), false, now).await)
                .await?;
        }
        Some("discard") => {
            _ = read(&app, async move |store| discard(&*store, &Selection::Sink(sink), false, now).await)
                .await?;
        }
        _ => return Err(Problem::NotFound),
    }
    Ok(see(&format!("/sinks/{name}")))
}
