//! `/sinks`: the messages of each sink, the reasons for failures, and actions such as pausing.

use std::collections::BTreeSet;

use axum::extract::{RawQuery, Request};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::{
    Answer,
    error_page::Segment,
    form::Form,
    notice::{see_done, told},
    page::{
        Column, ROWS, about, asking, count, fact, grouped, linked, next_page, page, parameters, states,
        table, time,
    },
    session::{Session, Visit},
    verdict::HELD_UP,
};
use crate::{
    http::{
        App,
        error::Problem,
        v1::{act, query::page as cut, read},
    },
    store::{Deed, MessageFilter, MessageState, StoredMessage},
    sync::operator::Which,
};

/// The state of a sink.
struct Known {
    name: String,
    is_configured: bool,
    paused_since: Option<DateTime<Utc>>,
    waiting: u64,
    dead: u64,
    oldest: Option<DateTime<Utc>>,
}

/// All sinks in the order of their names: those that are configured, have messages, or are paused.
async fn load(app: &App) -> Result<Vec<Known>, Problem> {
    let (depth, paused) =
        read(app, async |store| Ok((store.outbox_depth().await?, store.paused_sinks().await?))).await?;
    let names = app.sinks.iter().chain(depth.iter().map(|depth| &depth.sink));
    let names: BTreeSet<&String> = names.chain(paused.iter().map(|(sink, _)| sink)).collect();
    let known = |name: &String| {
        let depth = depth.iter().find(|depth| depth.sink == *name);
        Known {
            name: name.clone(),
            is_configured: app.sinks.contains(name),
            paused_since: paused.iter().find(|(sink, _)| sink == name).map(|(_, since)| *since),
            waiting: depth.map_or(0, |depth| depth.pending),
            dead: depth.map_or(0, |depth| depth.dead),
            oldest: depth.and_then(|depth| depth.oldest),
        }
    };
    Ok(names.into_iter().map(known).collect())
}

async fn load_one(app: &App, name: &str) -> Result<Known, Problem> {
    load(app).await?.into_iter().find(|sink| sink.name == name).ok_or(Problem::SinkNotFound)
}

/// `GET /sinks`
pub(super) async fn list(Visit { app, session }: Visit) -> Answer {
    let sinks = load(&app).await?;
    let now = (app.clock)();
    let columns: [Column<'_>; 5] =
        [("Sink", ""), ("State", ""), ("Waiting", "number"), ("Dead", "number"), ("Oldest message", "")];
    let cells = |sink: &Known| {
        vec![
            html! { a href={ "/sinks/" (sink.name) } { (sink.name) } },
            state_tag(sink, now),
            html! { (grouped(sink.waiting)) },
            html! { (grouped(sink.dead)) },
            sink.oldest.map(|oldest| time(now, oldest)).unwrap_or_default(),
        ]
    };
    let content = html! {
        p.note { "Other systems that receive changes. Messages wait here until the system accepts them." }
        @if sinks.is_empty() {
            p.nothing { "No sink is configured. Each sink is a table " code { "[[sink]]" } " in " code { "clerk-sync.toml" } "." }
        } @else {
            (table("Sinks", &columns, "", &sinks, cells))
        }
    };
    Ok(page(&app, &session, "/sinks", "Sinks", &content))
}

fn state_tag(sink: &Known, now: DateTime<Utc>) -> Markup {
    let (class, word) = if sink.paused_since.is_some() {
        ("pending", "paused")
    } else if sink.oldest.is_some_and(|oldest| now - oldest > HELD_UP) {
        ("dead", "behind")
    } else if sink.is_configured {
        ("applied", "on")
    } else {
        ("dead", "not configured")
    };
    html! { span.tag.{ (class) } { (word) } }
}

/// `GET /sinks/{sink}`
pub(super) async fn show(
    Visit { app, session }: Visit,
    Segment(name): Segment,
    RawQuery(query): RawQuery,
) -> Answer {
    let known = load_one(&app, &name).await?;
    let state_at_first = if known.dead == 0 { MessageState::Pending } else { MessageState::Dead };
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
        ("dead", "Dead", Some(known.dead)),
        ("pending", "Waiting", Some(known.waiting)),
        ("delivered", "Delivered", None),
        ("discarded", "Discarded", None),
        ("all", "All", None),
    ];
    let content = html! {
        (told(&asked, now))
        dl.facts {
            (fact("State", &state_tag(&known, now)))
            (fact("Waiting", &html! { (grouped(known.waiting)) }))
            (fact("Dead", &html! { (grouped(known.dead)) }))
            @if let Some(since) = known.paused_since { (fact("Paused", &time(now, since))) }
        }
        (deeds(&session, &path, &known))
        h2 { "Messages" }
        (states(&path, chosen, &tabs))
        (messages_table(&messages, now, about(&app)))
        (next_page("More", &path, next))
    };
    Ok(page(&app, &session, "/sinks", &name, &content))
}

/// The actions for a sink.
fn deeds(session: &Session, path: &str, sink: &Known) -> Markup {
    let dead = sink.dead;
    let again = format!("{} will be sent again.", count(dead, "message", "messages"));
    let given_up = format!(
        "The sink will never receive {}. Deletions are kept. This cannot be undone.",
        count(dead, "change", "changes")
    );
    html! {
        div.deeds {
            @if sink.paused_since.is_some() {
                (asking(session, path, "resume", "Resume", "Waiting messages are delivered again.", false))
            } @else {
                (asking(session, path, "pause", "Pause", "Messages wait until you resume it; nothing is lost.", false))
            }
            @if dead > 0 {
                (asking(session, path, "retry", "Retry all dead messages", &again, false))
                (asking(session, path, "discard", "Discard all dead messages", &given_up, true))
            }
        }
    }
}

fn messages_table(messages: &[StoredMessage], now: DateTime<Utc>, about: &str) -> Markup {
    let columns: [Column<'_>; 7] = [
        ("Number", "number"),
        ("Type", ""),
        (about, "id"),
        ("State", ""),
        ("Created", ""),
        ("Attempts", "number"),
        ("Error", "why"),
    ];
    table("Messages", &columns, "There are none.", messages, |message| {
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
}

/// `POST /sinks/{sink}`
pub(super) async fn change(
    Visit { app, session }: Visit,
    Segment(name): Segment,
    request: Request,
) -> Answer {
    let form = Form::read_own(&app, &session, request).await?;
    load_one(&app, &name).await?;
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
