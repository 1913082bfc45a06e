//! `GET /deliveries`: the newest processed webhooks.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};

use super::{
    page::{Column, ROWS, about, grouped, linked, page, table, time},
    session::Session,
    trouble::Trouble,
};
use crate::{
    clerk::event::KNOWN_TYPES,
    entity,
    http::{
        App,
        v1::{query::page as cut, read},
    },
    model::{ClerkId, Outcome, SvixId},
    store::{DeliveryFilter, LOOKED_THROUGH, Processed},
};

/// Every outcome that is recorded. The others are only answers.
const OUTCOMES: [Outcome; 5] =
    [Outcome::Applied, Outcome::Unchanged, Outcome::Stale, Outcome::Ignored, Outcome::Discarded];

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    RawQuery(query): RawQuery,
) -> Result<Response, Trouble> {
    let filter = filter(query.as_deref().unwrap_or_default());
    let asked = filter.clone();
    let found = read(&app, async move |store| store.deliveries(&asked, ROWS + 1).await).await?;
    let (found, more) = cut(found, ROWS);
    let next = found.last().filter(|_| more).map(|last| link(&filter, last));
    let is_filtered = filter.event_type.is_some() || filter.outcome.is_some();
    let content = html! {
        form.filter method="get" action="/deliveries" {
            (types(filter.event_type.as_deref().unwrap_or_default()))
            (outcomes(filter.outcome.as_deref()))
            button.quiet { "Show" }
        }
        @if is_filtered { p.note { "Among the newest " (grouped(LOOKED_THROUGH.into())) "." } }
        (processed_table(&found, (app.clock)(), Some(about(&app))))
        @if let Some(next) = next { p { a.button.quiet href=(next) { "Older ones" } } }
    };
    Ok(page(&app, &session, "/deliveries", "Deliveries", &content))
}

/// What is not understood is left out.
fn filter(query: &str) -> DeliveryFilter {
    let mut filter = DeliveryFilter::default();
    let (mut at, mut id) = (None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes())
        .filter(|(_, value)| !value.trim().is_empty() && !value.contains('\0'))
    {
        match &*name {
            // Typed or pasted, with a blank somewhere.
            "type" => filter.event_type = Some(value.trim().to_owned()),
            "outcome" => filter.outcome = Some(value.into_owned()),
            "at" => at = DateTime::parse_from_rfc3339(&value).ok().map(|at| at.to_utc()),
            "id" => id = SvixId::new(value),
            _ => {}
        }
    }
    filter.before = at.zip(id);
    filter
}

fn link(filter: &DeliveryFilter, last: &Processed) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("at", &last.processed_at.to_rfc3339_opts(SecondsFormat::Micros, true));
    query.append_pair("id", last.svix_id.as_str());
    for (name, value) in [("type", &filter.event_type), ("outcome", &filter.outcome)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    format!("/deliveries?{}", query.finish())
}

/// Any type can be asked for: new ones appear without notice. Those that are known are proposed.
fn types(asked: &str) -> Markup {
    html! {
        label {
            "Type"
            input name="type" value=(asked) list="types" placeholder="all" autocomplete="off" spellcheck="false";
        }
        datalist id="types" { @for name in KNOWN_TYPES.iter() { option value=(name) {} } }
    }
}

fn outcomes(asked: Option<&str>) -> Markup {
    let unknown = asked.filter(|asked| OUTCOMES.iter().all(|outcome| outcome.name() != *asked));
    html! {
        label {
            "Outcome"
            select name="outcome" {
                option value="" { "all" }
                @for outcome in OUTCOMES {
                    option value=(outcome) selected[asked == Some(outcome.name())] { (outcome) }
                }
                // What is asked for is shown, also if nothing ever has it.
                @if let Some(unknown) = unknown { option value=(unknown) selected { (unknown) } }
            }
        }
    }
}

/// Processed deliveries, with what they are about, below this word, if that is not known.
pub(super) fn processed_table(
    deliveries: &[Processed],
    now: DateTime<Utc>,
    about: Option<&'static str>,
) -> Markup {
    let mut columns: Vec<Column<'_>> =
        vec![("Processed", ""), ("Type", ""), ("Outcome", ""), ("Delivery", "id")];
    columns.extend(about.map(|about| (about, "id")));
    let rows: Vec<Vec<Markup>> = deliveries
        .iter()
        .map(|delivery| {
            vec![
                time(now, delivery.processed_at),
                html! { (delivery.event_type.as_deref().unwrap_or("unreadable")) },
                html! { span.tag.{ (delivery.outcome) } { (delivery.outcome) } },
                html! { (delivery.svix_id) },
                html! { @match subject(delivery) { Some(id) => (linked(&id)), None => @if let Some(id) = &delivery.clerk_id { (id) } } },
            ]
        })
        .collect();
    table("Deliveries", &columns, "There are none.", &rows)
}

/// The object that a delivery is about, if it is of a kind that we know.
fn subject(delivery: &Processed) -> Option<ClerkId> {
    ClerkId::new(entity::named(delivery.kind.as_deref()?)?, delivery.clerk_id.as_deref()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_older_ones_is_understood_again() {
        let at = DateTime::from_timestamp_micros(1_767_225_600_123_456).expect("a time");
        let last = Processed {
            svix_id: SvixId::new("msg_&=").expect("an id"),
            event_type: None,
            outcome: "stale".to_owned(),
            kind: None,
            clerk_id: None,
            event_at: at,
            processed_at: at,
        };
        let asked = DeliveryFilter { outcome: Some("stale".to_owned()), ..DeliveryFilter::default() };
        let link = link(&asked, &last);
        let again = filter(link.strip_prefix("/deliveries?").expect("a query"));
        assert_eq!(again.before, Some((at, last.svix_id)));
        assert_eq!((again.outcome, again.event_type), (asked.outcome, None));
    }
}
