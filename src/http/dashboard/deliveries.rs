//! `GET /deliveries`: the newest processed webhooks.

use axum::extract::RawQuery;
use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};

use super::{
    Answer,
    page::{Column, Query, ROWS, about, grouped, linked, next_page, page, parameters, table, time},
    session::Visit,
};
use crate::{
    clerk::event::KNOWN_TYPES,
    entity,
    http::v1::{query::page as cut, read},
    model::{ClerkId, Outcome, Selection, SvixId},
    store::{DeliveryFilter, Known, LOOKED_THROUGH, Processed},
};

/// Every outcome that is recorded. The others occur only in answers.
const OUTCOMES: [Outcome; 5] =
    [Outcome::Applied, Outcome::Unchanged, Outcome::Stale, Outcome::Ignored, Outcome::Discarded];

pub(super) async fn list(Visit { app, session }: Visit, RawQuery(query): RawQuery) -> Answer {
    let filter = filter(query.as_deref());
    let wanted = filter.clone();
    let (found, known) = read(&app, async move |store| {
        let found = store.deliveries(&wanted, ROWS + 1).await?;
        let mut ids: Vec<ClerkId> = found.iter().filter_map(subject).collect();
        ids.sort();
        ids.dedup();
        let known = store.known(&ids, &Selection::default()).await?;
        Ok((found, known))
    })
    .await?;
    let (found, next) = cut(found, ROWS, |last| older(&filter, last));
    let is_filtered = filter.event_type.is_some() || filter.outcome.is_some();
    let asked = filter.outcome.as_deref();
    let mut names: Vec<&str> = OUTCOMES.iter().map(|outcome| outcome.name()).collect();
    // The requested outcome is offered too, even if no delivery has it.
    names.extend(asked.filter(|asked| !names.contains(asked)));
    let content = html! {
        form.filter method="get" action="/deliveries" {
            // Any type can be entered: new ones appear without notice. Known types are suggested.
            label {
                "Type"
                input name="type" value=(filter.event_type.as_deref().unwrap_or_default()) list="types"
                    placeholder="all" autocomplete="off" spellcheck="false";
            }
            datalist id="types" { @for name in KNOWN_TYPES.iter() { option value=(name) {} } }
            label {
                "Outcome"
                select name="outcome" {
                    option value="" { "all" }
                    @for name in &names { option value=(name) selected[asked == Some(*name)] { (name) } }
                }
            }
            button.quiet { "Show" }
        }
        @if is_filtered { p.note { "Among the newest " (grouped(LOOKED_THROUGH.into())) "." } }
        (processed_table(&found, (app.clock)(), Some((about(&app), &known))))
        (next_page("Older", "/deliveries", next))
    };
    Ok(page(&app, &session, "/deliveries", "Deliveries", &content))
}

/// Values that cannot be parsed are ignored.
fn filter(query: Option<&str>) -> DeliveryFilter {
    let mut asked = parameters(query);
    asked.retain(|_, value| !value.trim().is_empty() && !value.contains('\0'));
    let at = asked.get("at").and_then(|at| DateTime::parse_from_rfc3339(at).ok());
    DeliveryFilter {
        before: at.map(|at| at.to_utc()).zip(asked.remove("id").and_then(SvixId::new)),
        // Typed or pasted, possibly with whitespace.
        event_type: asked.get("type").map(|event_type| event_type.trim().to_owned()),
        outcome: asked.remove("outcome"),
        ..DeliveryFilter::default()
    }
}

/// The query for deliveries older than this one.
fn older(filter: &DeliveryFilter, last: &Processed) -> Query {
    let at = last.processed_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut query = vec![("at", at), ("id", last.svix_id.to_string())];
    query.extend(filter.event_type.clone().map(|event_type| ("type", event_type)));
    query.extend(filter.outcome.clone().map(|outcome| ("outcome", outcome)));
    query
}

/// Processed deliveries. `about` is the heading of the column with their objects, if they are about several, and the ids that
/// are known: only those have a page to link to.
pub(super) fn processed_table(
    deliveries: &[Processed],
    now: DateTime<Utc>,
    about: Option<(&'static str, &Known)>,
) -> Markup {
    let mut columns: Vec<Column<'_>> =
        vec![("Processed", ""), ("Type", ""), ("Outcome", ""), ("Delivery", "id")];
    columns.extend(about.map(|(about, _)| (about, "id")));
    let has_page = |id: &ClerkId| about.is_some_and(|(_, known)| known.has(id));
    table("Deliveries", &columns, "There are none.", deliveries, |delivery| {
        vec![
            time(now, delivery.processed_at),
            html! { (delivery.event_type.as_deref().unwrap_or("unreadable")) },
            html! { span.tag.{ (delivery.outcome) } { (delivery.outcome) } },
            html! { (delivery.svix_id) },
            html! { @match subject(delivery).filter(has_page) { Some(id) => (linked(&id)), None => @if let Some(id) = &delivery.clerk_id { (id) } } },
        ]
    })
}

/// The object that a delivery is about, if its kind is known.
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
        let link = next_page("Older", "/deliveries", Some(older(&asked, &last))).into_string();
        let (_, query) = link.split_once("/deliveries?").expect("a query");
        let again = filter(query.split('"').next().map(|query| query.replace("&amp;", "&")).as_deref());
        assert_eq!(again.before, Some((at, last.svix_id)));
        assert_eq!((again.outcome, again.event_type), (asked.outcome, None));
    }
}
