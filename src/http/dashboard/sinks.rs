//! `/sinks`: what waits for each, what was not taken and why, and pausing them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{RawQuery, Request, State},
    response::Response,
};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    form::Form,
    notice::{see_done, told},
    page::{
        Column, ROWS, about, asking, count, fact, grouped, linked, next_page, page, parameters, states,
        table, time,
    },
    session::Session,
    trouble::{Segment, Trouble},
    verdict::HELD_UP,
};
use crate::{
    http::{
        App,
        error::Problem,
        v1::{act, query::page as cut, read},
    },
    store::{Deed, MessageFilter, MessageState, SinkDepth, StoredMessage},
    sync::operator::Which,
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
    let names = app.sinks.iter().chain(depth.keys()).chain(paused.keys()).cloned().collect();
    Ok(Sinks { depth, paused, names })
}

/// `GET /sinks`
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
) -> Result<Response, Trouble> {
    let sinks = load(&app).await?;
    let now = (app.clock)();
    let rows: Vec<Vec<Markup>> = sinks
        .names
        .iter()
        .map(|name| {
            let depth = sinks.depth.get(name);
            let oldest = depth.and_then(|depth| depth.oldest);
            vec![
                html! { a href={ "/sinks/" (name) } { (name) } },
                state_tag(name, &sinks, &app),
                html! { (grouped(depth.map_or(0, |depth| depth.pending))) },
                html! { (grouped(depth.map_or(0, |depth| depth.dead))) },
                oldest.map(|oldest| time(now, oldest)).unwrap_or_default(),
            ]
        })
        .collect();
    let columns: [Column<'_>; 5] =
        [("Sink", ""), ("State", ""), ("Waiting", "number"), ("Dead", "number"), ("Oldest written", "")];
    let content = html! {
        p.note { "Other systems that are told of users. What they are told waits here until they have taken it." }
        @if sinks.names.is_empty() {
            p.nothing { "None is configured. Each is a table " code { "[[sink]]" } " in " code { "clerk-sync.toml" } "." }
        } @else {
            (table("Sinks", &columns, "", &rows))
        }
    };
    Ok(page(&app, &session, "/sinks", "Sinks", &content))
}

fn state_tag(name: &String, sinks: &Sinks, app: &App) -> Markup {
    let now = (app.clock)();
    let oldest = sinks.depth.get(name).and_then(|depth| depth.oldest);
    let (class, word) = if sinks.paused.contains_key(name) {
        ("pending", "paused")
    } else if oldest.is_some_and(|oldest| now - oldest > HELD_UP) {
        ("dead", "behind")
    } else if app.sinks.contains(name) {
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
    Segment(name): Segment,
    RawQuery(query): RawQuery,
) -> Result<Response, Trouble> {
    let sinks = load(&app).await?;
    if !sinks.names.contains(&name) {
        return Err(Problem::SinkNotFound.into());
    }
    let (waiting, dead) = sinks.depth.get(&name).map_or((0, 0), |depth| (depth.pending, depth.dead));
    let state_at_first = if dead == 0 { MessageState::Pending } else { MessageState::Dead };
    let asked = parameters(query.as_deref());
    let state = asked.get("state").map_or(Some(state_at_first), |state| MessageState::named(state));
    let after = asked.get("after").and_then(|after| after.parse().ok());
    let filter = MessageFilter { sink: Some(name.clone()), state, after, ids: None };
    let messages = read(&app, async move |store| store.messages(&filter, ROWS + 1).await).await?;
    let chosen = state.map_or("all", MessageState::name);
    let (messages, next) =
        cut(messages, ROWS, |last| vec![("state", chosen.to_owned()), ("after", last.id.to_string())]);
    let now = (app.clock)();
    let path = format!("/sinks/{name}");
    let tabs = [
        ("dead", "Dead", Some(dead)),
        ("pending", "Waiting", Some(waiting)),
        ("delivered", "Delivered", None),
        ("discarded", "Discarded", None),
        ("all", "All", None),
    ];
    let content = html! {
        (told(&asked, now))
        dl.facts {
            (fact("State", &state_tag(&name, &sinks, &app)))
            (fact("Waiting", &html! { (grouped(waiting)) }))
            (fact("Dead", &html! { (grouped(dead)) }))
            @if let Some(since) = sinks.paused.get(&name) { (fact("Paused", &time(now, *since))) }
        }
        (deeds(&session, &path, sinks.paused.contains_key(&name), dead))
        h2 { "Messages" }
        (states(&path, chosen, &tabs))
        (messages_table(&messages, now, about(&app)))
        (next_page("More", &path, next))
    };
    Ok(page(&app, &session, "/sinks", &name, &content))
}

/// What can be done with a sink.
fn deeds(session: &Session, path: &str, is_paused: bool, dead: u64) -> Markup {
    let again = format!("{} will be sent again.", count(dead, "message", "messages"));
    let given_up = format!(
        "The sink will never hear of {}. Deletions stay. This cannot be undone.",
        count(dead, "change", "changes")
    );
    html! {
        div.deeds {
            @if is_paused {
                (asking(session, path, "resume", "Resume", "What waits goes out again.", false))
            } @else {
                (asking(session, path, "pause", "Pause", "Messages wait until you resume it; nothing is lost.", false))
            }
            @if dead > 0 {
                (asking(session, path, "retry", "Retry all that are dead", &again, false))
                (asking(session, path, "discard", "Discard all that are dead", &given_up, true))
            }
        }
    }
}

fn messages_table(messages: &[StoredMessage], now: DateTime<Utc>, about: &str) -> Markup {
    let columns: [Column<'_>; 7] = [
        ("Number", "number"),
        ("What", ""),
        (about, "id"),
        ("State", ""),
        ("Written", ""),
        ("Tries", "number"),
        ("Why", "why"),
    ];
    let rows: Vec<Vec<Markup>> = messages
        .iter()
        .map(|message| {
            vec![
                html! { (message.id) },
                html! { (message.kind) },
                html! { (linked(&message.clerk_id)) },
                html! { span.tag.{ (message.state.name()) } { (message.state.name()) } },
                time(now, message.created_at),
                html! { (message.attempts) },
                html! { (message.last_error.as_deref().unwrap_or_default()) },
            ]
        })
        .collect();
    table("Messages", &columns, "There are none.", &rows)
}

/// `POST /sinks/{sink}`
pub(super) async fn change(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Segment(name): Segment,
    request: Request,
) -> Result<Response, Trouble> {
    let form = Form::read_own(&app, &session, request).await?;
    if !load(&app).await?.names.contains(&name) {
        return Err(Problem::SinkNotFound.into());
    }
    let now = (app.clock)();
    let sink = name.clone();
    let (done, number) = match form.value("action") {
        Some("pause") => {
            read(&app, async move |store| store.set_paused(&sink, Some(now)).await).await?;
            ("paused", 1)
        }
        Some("resume") => {
            read(&app, async move |store| store.set_paused(&sink, None).await).await?;
            ("resumed", 1)
        }
        Some("retry") => {
            let tally = act::<StoredMessage>(&app, Which::Of(sink), Deed::Retry, false).await?;
            ("sent-again", tally.done)
        }
        Some("discard") => {
            let tally = act::<StoredMessage>(&app, Which::Of(sink), Deed::Discard, false).await?;
            ("given-up", tally.done)
        }
        _ => return Err(Problem::NotFound.into()),
    };
    Ok(see_done(&format!("/sinks/{name}"), done, number, now))
}
