//! `GET /`: whether the data is right, and if not, what to do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Response,
};
use chrono::{DateTime, DurationRound, TimeDelta, Timelike, Utc};
use maud::{Markup, html};
use tokio::time::timeout;

use super::{
    chart::{Bar, Chart},
    error_page::{cause, remedy},
    page::{ago, count, fact, grouped, length, page, time},
    session::Session,
    verdict::{Facts, Finding, Level, findings, last_believed},
};
use crate::{
    http::{App, error::Problem, v1::read},
    model::Outcome,
    store::{Activity, Count, DeliveryFilter, RunKind, WITHIN},
    sync::reconcile::Summary,
    work::backlog::Backlog,
};

/// How long the page waits for the number of users, which SQLite counts row by row.
const PATIENCE: Duration = Duration::from_millis(200);

/// A time range of the chart.
struct Range {
    name: &'static str,
    length: TimeDelta,
    /// Seconds per bar.
    step: u32,
    /// The format of a bar's label.
    format: &'static str,
    /// The format of the tick labels, and which bars have one.
    tick: (&'static str, fn(DateTime<Utc>) -> bool),
}

const RANGES: [Range; 3] = [
    Range {
        name: "hour",
        length: TimeDelta::hours(1),
        step: 60,
        format: "%H:%M",
        tick: ("%H:%M", |at| at.minute() % 10 == 0),
    },
    Range {
        name: "day",
        length: TimeDelta::days(1),
        step: 1800,
        format: "%H:%M",
        tick: ("%H:%M", |at| at.hour() % 4 == 0 && at.minute() == 0),
    },
    Range {
        name: "week",
        length: TimeDelta::days(7),
        step: 4 * 3600,
        format: "%a %d %b %H:%M",
        tick: ("%a", |at| at.hour() == 0),
    },
];

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    RawQuery(query): RawQuery,
) -> Response {
    let now = (app.clock)();
    let name = query.as_deref().and_then(|query| query.strip_prefix("range="));
    let range = RANGES.iter().find(|range| Some(range.name) == name).unwrap_or(&RANGES[0]);
    let (facts, users) = tokio::join!(facts(&app, now), users(&app));
    let facts = match facts {
        Ok(facts) => facts,
        Err(problem) => return page(&app, &session, "/", "Overview", &unknown(problem)),
    };
    let from = now - range.length;
    let activity = if range.step == 60 {
        Ok(facts.hour.clone())
    } else {
        let step = range.step;
        let written = read(&app, async move |store| store.activity(from, step).await).await;
        written.map(|written| written.into_iter().chain(app.answers.unwritten()).collect())
    };
    let findings = findings(&facts, now);
    let content = html! {
        div data-refresh="5" {
            (headline(&findings, &facts, now))
            (told(&findings))
            (numbers(&facts, users, now))
            h2 id="webhooks" { "Webhooks" }
            nav.tabs aria-label="Time range" {
                @for other in &RANGES {
                    a href={ "/?range=" (other.name) } aria-current=[(other.name == range.name).then_some("true")] {
                        "Last " (other.name)
                    }
                }
            }
            @match activity {
                Ok(activity) => (answered(range, &activity, from, now)),
                Err(problem) => p.complaint { (cause(problem)) "." },
            }
        }
    };
    page(&app, &session, "/", "Overview", &content)
}

/// The facts, read now or shortly before.
async fn facts(app: &Arc<App>, now: DateTime<Utc>) -> Result<Arc<Facts>, Problem> {
    let reader = Arc::clone(app);
    app.dashboard.facts.take(async move { look(&reader, now).await.map(Arc::new) }).await
}

async fn look(app: &App, now: DateTime<Utc>) -> Result<Facts, Problem> {
    let facts = read(app, async move |store| {
        let (at, summary) = match store.last_finished(RunKind::Reconcile, None).await? {
            Some(run) => (run.finished_at, Summary::of(&run)),
            None => (None, None),
        };
        Ok(Facts {
            // The time of a discarded delivery is that of the operator's action, not of its arrival.
            last_event: store
                .deliveries(&DeliveryFilter::default(), 20)
                .await?
                .into_iter()
                .find(|last| last.outcome != Outcome::Discarded.name())
                .map(|last| last.processed_at),
            hour: store.activity(now - TimeDelta::hours(1), 60).await?,
            backlog: Backlog::look(&*store).await?,
            reconciled: at.zip(summary),
        })
    });
    let mut facts = facts.await?;
    facts.hour.extend(app.answers.unwritten());
    facts.last_event = facts.last_event.max(last_believed(&facts.hour));
    Ok(facts)
}

/// The number of users as of the last count, if it is known already. A failed count can take as long as a successful one, and
/// is repeated as rarely.
async fn users(app: &Arc<App>) -> Option<Count> {
    let reader = Arc::clone(app);
    let count =
        async move { Ok(read(&reader, async move |store| store.estimate_standing().await).await.ok()) };
    timeout(PATIENCE, app.dashboard.users.take(count)).await.ok()?.ok()?
}

/// The page if the database does not answer.
fn unknown(problem: Problem) -> Markup {
    html! {
        div data-refresh="5" {
            section.verdict.wrong role="status" {
                (question())
                p.headline { strong { "Unknown." } " " (cause(problem)) }
                (remedy(problem))
            }
        }
    }
}

fn question() -> Markup {
    html! { p.question { "Is my data right?" } }
}

fn headline(findings: &[Finding], facts: &Facts, now: DateTime<Utc>) -> Markup {
    let Some(worst) = findings.first() else {
        return html! {
            section.verdict.well role="status" {
                (question())
                p.headline { strong { "Yes." } " Your data is right" }
                p {
                    @if let Some(last) = facts.last_event { "Last webhook " (ago(now, last)) ". " }
                    "Nothing is delayed, nothing failed."
                }
            }
        };
    };
    let answer = match worst.level {
        Level::Wrong => "No.",
        Level::Doubtful => "Not sure.",
    };
    html! {
        section.verdict.{ (class(worst.level)) } role="status" {
            (question())
            p.headline { strong { (answer) } " " (worst.what) }
            p.advice { (advice(worst)) }
        }
    }
}

/// What to do, and a link to the details.
fn advice(finding: &Finding) -> Markup {
    html! {
        (prose(finding.remedy))
        @if let Some((to, text)) = &finding.link { " " a href=(to) { (text) } }
    }
}

/// Text with commands between backticks.
fn prose(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// All findings except the worst, which is the headline.
fn told(findings: &[Finding]) -> Markup {
    html! {
        @if findings.len() > 1 {
            ul.findings {
                @for finding in &findings[1..] {
                    li.{ (class(finding.level)) } { strong { (finding.what) "." } " " span.advice { (advice(finding)) } }
                }
            }
        }
    }
}

fn class(level: Level) -> &'static str {
    match level {
        Level::Wrong => "wrong",
        Level::Doubtful => "doubtful",
    }
}

fn numbers(facts: &Facts, users: Option<Count>, now: DateTime<Utc>) -> Markup {
    let Backlog { queue, sinks, erasures, .. } = &facts.backlog;
    let pending: u64 = sinks.iter().map(|sink| sink.pending).sum();
    let dead: u64 = sinks.iter().map(|sink| sink.dead).sum();
    let erasures: u64 = erasures.iter().map(|open| open.receipts).sum();
    let link = |to: &str, number| html! { a href=(to) { (grouped(number)) } };
    html! {
        dl.facts.tiles {
            (fact("Users", &html! {
                @if let Some(users) = users { @if users.estimated { "about " } (grouped(users.rows)) }
                @else { small { "not counted yet" } }
            }))
            (fact("Last webhook", &facts.last_event.map_or(html! { "none yet" }, |last| time(now, last))))
            (fact("Waiting to be applied", &link("/queue?state=pending", queue.pending)))
            (fact("Dead letters", &link("/queue?state=dead", queue.dead)))
            (fact("Messages waiting", &link("/sinks", pending)))
            (fact("Dead messages", &link("/sinks", dead)))
            (fact("Last reconcile", &match &facts.reconciled {
                None => html! { "never" },
                Some((at, summary)) => html! {
                    (time(now, *at)) " " small { (count(summary.differed(), "difference", "differences")) }
                },
            }))
            (fact("Open erasures", &html! { (grouped(erasures)) }))
        }
    }
}

fn answered(range: &Range, activity: &[Activity], from: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let step = TimeDelta::seconds(range.step.into());
    let mut bars: BTreeMap<DateTime<Utc>, [u64; 3]> = BTreeMap::new();
    let mut at = from.duration_trunc(step).unwrap_or(from);
    while at <= now {
        bars.insert(at, [0; 3]);
        at += step;
    }
    let mut outcomes: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for answered in activity {
        let series = match answered.outcome.as_str() {
            "applied" | "queued" => 0,
            "rejected" | "failed" | "parked" => 2,
            _ => 1,
        };
        let at = answered.at.duration_trunc(step).unwrap_or(answered.at);
        if let Some(bar) = bars.get_mut(&at) {
            bar[series] += answered.count;
        }
        *outcomes.entry((&answered.outcome, &answered.reason)).or_default() += answered.count;
    }
    let (tick, has_tick) = range.tick;
    let bars = bars.into_iter().map(|(at, heights)| Bar {
        label: at.format(range.format).to_string(),
        tick: has_tick(at).then(|| at.format(tick).to_string()),
        heights: heights.to_vec(),
    });
    let title = format!("Webhooks in the last {}", range.name);
    let chart =
        Chart { title: &title, series: &["applied", "nothing to do", "not applied"], bars: bars.collect() };
    html! {
        (chart.draw())
        div.columns {
            section {
                h3 { "Outcomes" }
                @if outcomes.is_empty() { p.nothing { "There were none." } }
                @else {
                    table {
                        thead { tr { th { "Outcome" } th { "Reason" } th.number { "Webhooks" } } }
                        tbody { @for ((outcome, reason), number) in &outcomes {
                            tr { td { span.tag.{ (outcome) } { (outcome) } } td { @for part in reason.split_inclusive('_') { (part) wbr; } } td.number { (grouped(*number)) } }
                        } }
                    }
                }
            }
            section { h3 { "Response times" } (latency(activity)) }
        }
    }
}

fn latency(activity: &[Activity]) -> Markup {
    let all: u64 = activity.iter().map(|answered| answered.count).sum();
    if all == 0 {
        return html! { p.nothing { "There were none." } };
    }
    let within = |index: usize| -> u64 { activity.iter().map(|answered| answered.within[index]).sum() };
    html! {
        table {
            thead { tr { th { "Answered within" } th.number { "Webhooks" } th.number { "Share" } } }
            tbody { @for (index, milliseconds) in WITHIN.into_iter().enumerate() {
                tr {
                    td { @if milliseconds < 1000 { (milliseconds) " ms" } @else { (length(TimeDelta::milliseconds(milliseconds.into()))) } }
                    td.number { (grouped(within(index))) }
                    td.number { (share(within(index), all)) }
                }
            } }
        }
    }
}

fn share(part: u64, all: u64) -> String {
    let tenths = part.saturating_mul(1000) / all.max(1);
    format!("{}.{} %", tenths / 10, tenths % 10)
}
