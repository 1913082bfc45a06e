//! `/queue`: deliveries that are pending or dead, with the reason, the contents and the possible actions.

use axum::{
    extract::{RawQuery, Request},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use serde_json::{Map, Value as Json};

use super::{
    Answer,
    error_page::Segment,
    form::Form,
    notice::{see_done, told},
    page::{
        ROWS, about, asking, button, count, fact, linked, masked, next_page, page, parameters, states, table,
        time, whereabouts,
    },
    session::{Session, Visit},
};
use crate::{
    http::{
        App,
        error::Problem,
        v1::{act, query::page as cut, read},
    },
    model::{Source, SvixId},
    store::{Deed, Parked, QueueFilter, QueueState, Queued},
    sync::{operator::Which, reveal},
};

/// `GET /queue`
pub(super) async fn list(Visit { app, session }: Visit, RawQuery(query): RawQuery) -> Answer {
    let asked = parameters(query.as_deref());
    let state = asked.get("state").map_or(Some(QueueState::Dead), |state| QueueState::named(state));
    let after = asked.get("after").and_then(|after| SvixId::new(after.as_str()));
    let filter = QueueFilter { state, after, ..QueueFilter::default() };
    let found = read(&app, async move |store| store.queued(&filter, ROWS + 1).await).await?;
    let depth = read(&app, async move |store| store.queue_depth().await).await?;
    let chosen = state.map_or("all", QueueState::name);
    let (found, next) =
        cut(found, ROWS, |last| vec![("state", chosen.to_owned()), ("after", last.svix_id.to_string())]);
    let tabs = [
        ("dead", "Dead", Some(depth.dead)),
        ("pending", "Waiting", Some(depth.pending)),
        ("all", "All", None),
    ];
    let nothing = match state {
        Some(QueueState::Dead) => "None. All deliveries were applied, or are still pending.",
        Some(QueueState::Pending) => "None. No delivery is pending.",
        None => "None. All deliveries are applied.",
    };
    let again = format!(
        "{} will be retried now, including pending ones.",
        count(depth.dead + depth.pending, "delivery", "deliveries")
    );
    let now = (app.clock)();
    let content = html! {
        (told(&asked, now))
        p.note { "Genuine webhooks that could not be applied. Pending ones are retried automatically, dead ones are not." }
        (states("/queue", chosen, &tabs))
        (queued_table(&found, now, nothing))
        (next_page("More", "/queue", next))
        @if depth.dead > 0 {
            div.deeds { (asking(&session, "/queue", "retry", "Retry all", &again, false)) }
        }
    };
    Ok(page(&app, &session, "/queue", "Dead letters", &content))
}

/// Deliveries of the queue.
pub(super) fn queued_table(queued: &[Queued], now: DateTime<Utc>, nothing: &str) -> Markup {
    let columns = [
        ("Delivery", "id"),
        ("Type", ""),
        ("State", ""),
        ("Received", ""),
        ("Attempts", "number"),
        ("Error", "why"),
    ];
    table("Deliveries of the queue", &columns, nothing, queued, |one| {
        vec![
            html! { a href=(whereabouts("/queue", one.svix_id.as_str())) { (one.svix_id) } },
            html! { (one.event_type.as_deref().unwrap_or("unreadable")) },
            html! { span.tag.{ (one.state.name()) } { (one.state.name()) } },
            time(now, one.received_at),
            html! { (one.attempts) },
            html! { (one.last_error) },
        ]
    })
}

/// `POST /queue`
pub(super) async fn retry_all(Visit { app, session }: Visit, request: Request) -> Answer {
    let form = Form::read_own(&app, &session, request).await?;
    if form.value("action") != Some("retry") {
        return Err(Problem::NotFound.into());
    }
    let tally = act::<Queued>(&app, Which::All, Deed::Retry, false).await?;
    app.committer.bell().notify_one();
    Ok(see_done("/queue?state=pending", "retried", tally.done, (app.clock)()))
}

/// `GET /queue/{svix_id}`
pub(super) async fn show(Visit { app, session }: Visit, Segment(id): Segment) -> Answer {
    show_one(&app, &session, &id, false).await
}

/// `POST /queue/{svix_id}`
pub(super) async fn change(Visit { app, session }: Visit, Segment(id): Segment, request: Request) -> Answer {
    let form = Form::read_own(&app, &session, request).await?;
    let svix_id = SvixId::new(id.as_str()).ok_or(Problem::NotFound)?;
    let now = (app.clock)();
    let (deed, done) = match form.value("action") {
        Some("retry") => (Deed::Retry, "retried"),
        Some("discard") => (Deed::Discard, "discarded"),
        Some("reveal") => {
            let recorded = read(&app, async move |store| {
                let Some(parked) = store.parked(&svix_id).await? else { return Ok(false) };
                reveal::reveal_delivery(&*store, &parked, Source::Dashboard, now).await.map(|()| true)
            })
            .await?;
            return show_one(&app, &session, &id, recorded).await;
        }
        _ => return Err(Problem::NotFound.into()),
    };
    let tally = act::<Queued>(&app, Which::These(vec![svix_id]), deed, false).await?;
    if tally.deletions > 0 {
        let content = html! { p { "This is the deletion of a user, which is kept until it succeeds." } };
        return Ok(page(&app, &session, "/queue", "Not discarded", &content));
    }
    app.committer.bell().notify_one();
    Ok(see_done("/queue", done, tally.done, now))
}

async fn show_one(app: &App, session: &Session, id: &str, revealed: bool) -> Answer {
    let svix_id = SvixId::new(id).ok_or(Problem::NotFound)?;
    let Some(parked) = read(app, async move |store| store.parked(&svix_id).await).await? else {
        let content = html! { p { "This delivery is not in the queue: it was applied or discarded, or never arrived." } };
        let mut page = page(app, session, "/queue", "Not in the queue", &content);
        *page.status_mut() = StatusCode::NOT_FOUND;
        return Ok(page);
    };
    Ok(page(app, session, "/queue", id, &content(app, session, &parked, (app.clock)(), revealed)))
}

fn content(app: &App, session: &Session, parked: &Parked, now: DateTime<Utc>, revealed: bool) -> Markup {
    let path = whereabouts("/queue", parked.svix_id.as_str());
    html! {
        p.reason { @if parked.last_error.is_empty() { "It has not been tried yet." } @else { (parked.last_error) } }
        dl.facts {
            (fact("State", &html! { span.tag.{ (parked.state().name()) } { (parked.state().name()) } }))
            (fact("Type", &html! { (parked.event_type.as_deref().unwrap_or("unreadable")) }))
            (fact(about(app), &html! {
                @match &parked.clerk_id { Some(id) => code { (linked(id)) }, None => "unknown" }
            }))
            (fact("Received", &time(now, parked.received_at)))
            (fact("Attempts", &html! { (parked.attempts) }))
            (fact("Next", &parked.next_attempt_at.map_or(html! { "not automatically" }, |at| time(now, at))))
        }
        div.deeds {
            (asking(session, &path, "retry", "Retry", "It will be retried now.", false))
            (asking(session, &path, "discard", "Discard",
                "It will never be applied, even if Clerk sends it again. This cannot be undone.", true))
        }
        h2 { "Contents" }
        @if parked.payload.is_empty() { p.nothing { "The contents are not stored." } }
        @else {
            pre.scroll tabindex="0" { (said(&parked.payload, revealed)) }
            @if revealed { p.note { "The audit trail records that this was revealed." } }
            @else { (button(session, &path, "reveal", "Reveal (recorded)", "quiet")) }
        }
    }
}

/// The body, with its texts masked unless it was revealed. Names of fields and the event type are kept.
fn said(payload: &[u8], revealed: bool) -> String {
    let Ok(mut body) = serde_json::from_slice::<Json>(payload) else {
        return if revealed {
            String::from_utf8_lossy(payload).into_owned()
        } else {
            format!("{} that are not JSON", count(payload.len() as u64, "byte", "bytes"))
        };
    };
    if !revealed {
        if let Some(data) = body.as_object_mut() {
            let envelope = ["type", "object", "timestamp", "instance_id"];
            let is_clerks = |name: &str, value: &Json| envelope.contains(&name) && is_word(value);
            mask_fields(data, &is_clerks);
        } else {
            mask(&mut body);
        }
    }
    serde_json::to_string_pretty(&body).unwrap_or_default()
}

/// Fields whose texts come from Clerk's vocabulary.
const HARMLESS: [&str; 5] = ["id", "object", "status", "strategy", "type"];

fn mask(value: &mut Json) {
    match value {
        Json::String(text) => *text = masked(text),
        Json::Number(_) => *value = Json::String(masked("")),
        Json::Array(items) => items.iter_mut().for_each(mask),
        Json::Object(fields) => mask_fields(fields, &|name, value| {
            (HARMLESS.contains(&name) && value.is_string() && is_word(value))
                || (name.ends_with("_at") && is_time(value))
        }),
        Json::Null | Json::Bool(_) => {}
    }
}

/// Mask all values except Clerk's own words. In metadata, and where they look unusual, names are masked too.
fn mask_fields(fields: &mut Map<String, Json>, is_clerks: &dyn Fn(&str, &Json) -> bool) {
    let masked_fields = std::mem::take(fields).into_iter().enumerate().map(|(index, (name, mut value))| {
        if name.ends_with("_metadata") && !value.is_null() {
            value = Json::String(masked(""));
        } else if !is_clerks(&name, &value) {
            mask(&mut value);
        }
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (if plain { name } else { format!("••• {index}") }, value)
    });
    *fields = masked_fields.collect();
}

/// Whether it is a number, or a word like those of Clerk's vocabulary: not an address or a sentence.
fn is_word(value: &Json) -> bool {
    match value {
        Json::Number(_) => true,
        Json::String(text) => {
            text.len() <= 64
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        }
        _ => false,
    }
}

/// Whether it is a time of this century in milliseconds.
fn is_time(value: &Json) -> bool {
    value.as_i64().is_some_and(|number| (946_684_800_000..4_102_444_800_000).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_body_says_nothing_of_anybody() {
        let body = r#"{"type":"user.created","data":{"id":"user_1","first_name":"Ada","age":36,"created_at":1767225600000,
            "email_addresses":[{"email_address":"ada@example.com"}],"unsafe_metadata":{"likes Ada":1}},
            "event_attributes":{"http_request":{"client_ip":"192.0.2.7"}}}"#;
        let shown = said(body.as_bytes(), false);
        for personal in ["Ada", "ada@", "36", "192", "likes", "example"] {
            assert!(!shown.contains(personal), "{personal}: {shown}");
        }
        for kept in ["user.created", "first_name", "1767225600000", "a•••@•••"].into_iter().take(3)
        {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert!(said(body.as_bytes(), true).contains("ada@example.com"));
        let odd = r#"{"type":{"email":"leak1@x.y"},"timestamp":"leak2@x.y","data":{"phone":972501234567,"leak3@x.y":1,"status":"leak4@x.y"}}"#;
        let shown = said(odd.as_bytes(), false);
        for personal in ["leak", "972501234567"] {
            assert!(!shown.contains(personal), "{personal}: {shown}");
        }
        assert_eq!(said(b"{\"a\": Ada", false), "9 bytes that are not JSON");
    }
}
