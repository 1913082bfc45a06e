//! Shared parts of all pages: the frame, formats of times and numbers, and forms.

use std::collections::HashMap;

use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use maud::{DOCTYPE, Markup, html};

use super::session::Session;
use crate::{
    entity::{self, USER},
    http::{
        App,
        v1::objects::{without, words},
    },
    model::{ClerkId, Entity, Selection, rfc3339},
    telemetry::plain,
};

/// The fixed entries of the menu; kinds other than users are inserted after the users.
const MENU: [(&str, &str); 6] = [
    ("/", "Overview"),
    ("/users", "Users"),
    ("/sign-ups", "Sign-ups"),
    ("/deliveries", "Deliveries"),
    ("/queue", "Dead letters"),
    ("/sinks", "Sinks"),
];

/// Rows of a list on a page.
pub(super) const ROWS: u32 = 50;

/// The path and the name of every menu entry.
fn menu(selection: &Selection) -> Vec<(String, String)> {
    let (before, behind) = MENU.split_at(2);
    let fixed = |(path, name): &(&str, &str)| ((*path).to_owned(), (*name).to_owned());
    let others = selection.entities().filter(|entity| **entity != USER);
    let others = others.map(|entity| (folder(entity), words(plural(entity))));
    before.iter().map(fixed).chain(others).chain(behind.iter().map(fixed)).collect()
}

/// A page for a signed-in operator. `path` is its menu entry.
pub(super) fn page(app: &App, session: &Session, path: &str, title: &str, content: &Markup) -> Response {
    let menu = menu(&app.selection);
    let frame = html! {
        header {
            a.skip href="#content" { "Skip to the content" }
            a.brand href="/" { img src="/assets/icon.svg" alt="" width="24" height="24"; "clerk-sync" }
            nav aria-label="Pages" {
                @for (target, name) in &menu {
                    a href=(target) aria-current=[(target == path).then_some("page")] { (name) }
                }
            }
            (button(session, "/sign-out", "sign-out", "Sign out", "quiet"))
        }
        main id="content" tabindex="-1" {
            @if let Some((above, name)) = menu.iter().find(|(target, name)| target == path && name != title) {
                p.above { a href=(above) { "← " (name) } }
            }
            h1 { (title) }
            (content)
        }
        footer { "clerk-sync " (env!("CARGO_PKG_VERSION")) " · times in UTC" }
    };
    document(title, &frame).into_response()
}

/// A page without a session. It shows the name of the program; its title states the purpose.
pub(super) fn stranger(status: StatusCode, title: &str, content: &Markup) -> Response {
    let frame = html! {
        main.stranger id="content" {
            img src="/assets/icon.svg" alt="" width="40" height="40";
            h1 { "clerk-sync" }
            (content)
        }
    };
    (status, document(title, &frame)).into_response()
}

fn document(title: &str, body: &Markup) -> Html<String> {
    Html(plain::html(
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · clerk-sync" }
                    link rel="stylesheet" href="/assets/style.css";
                    link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                    script src="/assets/refresh.js" defer {}
                }
                body { (body) }
            }
        }
        .into_string(),
    ))
}

/// A form with a single button; without a class it is the primary one.
pub(super) fn button(session: &Session, path: &str, action: &str, label: &str, class: &str) -> Markup {
    html! {
        form method="post" action=(path) {
            input type="hidden" name="csrf" value=(session.csrf);
            button class=[(!class.is_empty()).then_some(class)] name="action" value=(action) { (label) }
        }
    }
}

/// A button that asks for confirmation. Without JavaScript: it opens, and shows the button and a way to cancel. It is styled
/// as dangerous if the action `destroys` something permanently.
pub(super) fn asking(
    session: &Session,
    path: &str,
    action: &str,
    label: &str,
    question: &str,
    destroys: bool,
) -> Markup {
    let (summary, button_class) = if destroys { ("danger", "danger") } else { ("quiet", "") };
    html! {
        details.asking name="deed" {
            summary role="button" class=(summary) { (label) "…" }
            div {
                p { (question) }
                div.deeds {
                    (button(session, path, action, label, button_class))
                    a.button.quiet href=(path) { "Cancel" }
                }
            }
        }
    }
}

/// The query parameters of a page.
pub(super) type Parameters = HashMap<String, String>;

pub(super) fn parameters(query: Option<&str>) -> Parameters {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

/// Links to the entries in each state, with their number where it is known.
pub(super) fn states(path: &str, chosen: &str, states: &[(&str, &str, Option<u64>)]) -> Markup {
    html! {
        nav.tabs aria-label="State" {
            @for (state, label, number) in states {
                a href={ (path) "?state=" (state) } aria-current=[(*state == chosen).then_some("true")] {
                    (label) @if let Some(number) = number { " " span.count { (grouped(*number)) } }
                }
            }
        }
    }
}

/// The query of a link.
pub(super) type Query = Vec<(&'static str, String)>;

/// The link to the next page of a list, if there is one.
pub(super) fn next_page(label: &str, path: &str, next: Option<Query>) -> Markup {
    let link = next.map(|next| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        format!("{path}?{}", query.extend_pairs(next).finish())
    });
    html! { @if let Some(link) = link { p { a.button.quiet href=(link) { (label) } } } }
}

/// The heading of a column, and the type of its cells: ids, numbers, sentences, or other text.
pub(super) type Column<'a> = (&'a str, &'static str);

/// A row per item, below the headings; on a narrow screen every row is a card. An empty table shows `nothing`.
pub(super) fn table<Item>(
    label: &str,
    columns: &[Column<'_>],
    nothing: &str,
    items: &[Item],
    cells: impl Fn(&Item) -> Vec<Markup>,
) -> Markup {
    let class = |class: &'static str| (!class.is_empty()).then_some(class);
    html! {
        @if items.is_empty() {
            p.nothing { (nothing) }
        } @else {
            // As cards the elements lose their table roles for screen readers, so they are set explicitly.
            div.scroll role="region" aria-label=(label) tabindex="0" { table.cards role="table" {
                thead role="rowgroup" { tr role="row" {
                    @for (name, kind) in columns { th scope="col" role="columnheader" class=[class(kind)] { (name) } }
                } }
                tbody role="rowgroup" { @for item in items {
                    tr role="row" {
                        @for ((name, kind), cell) in columns.iter().zip(cells(item)) {
                            td role="cell" data-label=(name) class=[class(kind)] { (cell) }
                        }
                    }
                } }
            } }
        }
    }
}

/// One line of a list of facts.
pub(super) fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// A time, exact and relative.
pub(super) fn time(now: DateTime<Utc>, at: DateTime<Utc>) -> Markup {
    html! { time datetime=(rfc3339(at)) title=(rfc3339(at)) { (ago(now, at)) } }
}

/// A time as text.
pub(super) fn moment(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(rfc3339(at)) { (at.format("%Y-%m-%d %H:%M:%S")) } }
}

/// How long ago, or how long until.
pub(super) fn ago(now: DateTime<Utc>, at: DateTime<Utc>) -> String {
    let past = now - at;
    if past.abs() < TimeDelta::seconds(1) {
        "just now".to_owned()
    } else if past > TimeDelta::zero() {
        format!("{} ago", length(past))
    } else {
        format!("in {}", length(-past))
    }
}

/// A duration in its two largest units.
pub(super) fn length(time: TimeDelta) -> String {
    let seconds = time.num_seconds();
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large} {large_unit}")
        } else {
            format!("{large} {large_unit} {small} {small_unit}")
        }
    };
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", 0, ""),
        3600..86_400 => two(seconds / 3600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// A number with its noun.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// A number with separated thousands.
pub(super) fn grouped(number: u64) -> String {
    grouped_by(number, '\u{202f}')
}

/// A number with this separator between thousands.
pub fn grouped_by(number: u64, separator: char) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(digit);
    }
    text
}

/// Personal data before it is revealed: its first letter at most.
pub(super) fn masked(value: &str) -> String {
    // In a short name, one letter would be all or most of it.
    let mut masked: String =
        if value.chars().nth(2).is_some() { value.chars().take(1).collect() } else { String::new() };
    masked.push_str("•••");
    if value.contains('@') {
        masked.push_str("@•••");
    }
    masked
}

/// Precedes an id that a path cannot hold unchanged.
pub(super) const ESCAPE: char = '~';

/// The path of the object with this id. Ids come from outside, and may look like paths or queries. [`Segment`] decodes it.
///
/// [`Segment`]: super::error_page::Segment
pub(super) fn whereabouts(folder: &str, id: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    // In a path, a plus sign is literal.
    let encoded = encoded.replace('+', "%20");
    // Browsers go up a level for these, however they are encoded.
    if matches!(id, "." | "..") || id.starts_with(ESCAPE) {
        format!("{folder}/{ESCAPE}{encoded}")
    } else {
        format!("{folder}/{encoded}")
    }
}

/// The path of the objects of a kind.
pub(super) fn folder(entity: &Entity) -> String {
    format!("/{}", entity.table)
}

/// An id that links to the page of its object.
pub(super) fn linked(id: &ClerkId) -> Markup {
    html! { a href=(whereabouts(&folder(id.entity()), id.as_str())) { (id) } }
}

/// The heading of a column with the objects' ids.
pub(super) fn about(app: &App) -> &'static str {
    if app.selection.entities().all(|entity| *entity == USER) { "User" } else { "About" }
}

/// The short plural of a kind, without its parents: `memberships`.
pub(super) fn plural(entity: &'static Entity) -> &'static str {
    beside_parents(entity, |entity| entity.table)
}

/// The short singular of a kind.
pub(super) fn singular(entity: &'static Entity) -> &'static str {
    beside_parents(entity, |entity| entity.kind)
}

/// A name without those of the parents, unless another kind has the short name: invitations to an organization differ from
/// invitations to the application.
fn beside_parents(entity: &'static Entity, name: fn(&Entity) -> &'static str) -> &'static str {
    let short = entity.parents().fold(name(entity), |short, (_, parent)| without(short, parent));
    let is_another = entity::ALL.iter().any(|other| *other != entity && name(other) == short);
    if is_another { name(entity) } else { short }
}

/// Redirect to a page, by GET.
pub(super) fn see(path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, path.to_owned())]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_their_two_largest_units() {
        for (seconds, told) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (3660, "1 h 1 min"),
            (86_400, "1 d"),
            (97_200, "1 d 3 h"),
        ] {
            assert_eq!(length(TimeDelta::seconds(seconds)), told);
        }
    }

    #[test]
    fn a_mask_shows_what_kind_of_thing_it_is_and_hardly_more() {
        assert_eq!(masked("ada@example.com"), "a•••@•••");
        assert_eq!(masked("Ada"), "A•••");
        assert_eq!(masked("王"), "•••");
        assert_eq!(masked("Éva"), "É•••");
        assert_eq!(masked(""), "•••");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
    }
}
