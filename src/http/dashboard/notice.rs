//! What was done, told on the page that one comes back to.
//!
//! A deed is answered with the way to a page, so the address has to say what it did: by a word of ours, a number and the
//! time. Only these words become sentences, so that no link can put others on a page; and only for a moment, so that
//! neither reloading a page nor a bookmark tells for ever of what was done once.

use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::page::{count, see};

/// How long it is told.
const TOLD_FOR: TimeDelta = TimeDelta::seconds(30);

/// What can have been done to deliveries, messages or a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Deliveries of the queue are due.
    Retried,
    /// They were taken out of the queue.
    Discarded,
    /// Messages of a sink are due.
    SentAgain,
    /// A sink will never hear of them.
    GivenUp,
    Paused,
    Resumed,
}

impl Done {
    const ALL: [Self; 6] =
        [Self::Retried, Self::Discarded, Self::SentAgain, Self::GivenUp, Self::Paused, Self::Resumed];

    /// The word in the address.
    fn name(self) -> &'static str {
        match self {
            Self::Retried => "retried",
            Self::Discarded => "discarded",
            Self::SentAgain => "sent-again",
            Self::GivenUp => "given-up",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|done| done.name() == name)
    }

    /// What it did to so many.
    fn sentence(self, number: u64) -> String {
        match (self, number) {
            (Self::Paused, _) => "Paused. Messages wait until you resume it.".to_owned(),
            (Self::Resumed, _) => "Resumed. What waits goes out again.".to_owned(),
            (Self::Retried, 0) => {
                "Nothing is left to retry: it was applied or discarded meanwhile, or is tried right now."
                    .to_owned()
            }
            (Self::Discarded, 0) => {
                "Nothing is left to discard: it was applied or discarded meanwhile.".to_owned()
            }
            (Self::SentAgain, 0) => "Nothing is left to send again: no message is dead.".to_owned(),
            (Self::GivenUp, 0) => {
                "Nothing was discarded: no message is dead, or only deletions are, and they stay.".to_owned()
            }
            (Self::Retried, _) => {
                format!("{} tried again now.", count(number, "delivery is", "deliveries are"))
            }
            (Self::Discarded, _) => {
                format!("{} discarded.", count(number, "delivery was", "deliveries were"))
            }
            (Self::SentAgain, _) => {
                format!("{} will be sent again.", count(number, "message", "messages"))
            }
            (Self::GivenUp, _) => format!("{} discarded.", count(number, "message was", "messages were")),
        }
    }
}

/// Go there, and be told what was done to so many.
pub(super) fn see_done(path: &str, done: Done, number: u64, now: DateTime<Utc>) -> Response {
    let separator = if path.contains('?') { '&' } else { '?' };
    see(&format!("{path}{separator}done={}&number={number}&at={}", done.name(), now.timestamp()))
}

/// What the address of a page says was done a moment ago.
pub(super) fn told(query: Option<&str>, now: DateTime<Utc>) -> Markup {
    html! {
        @if let Some((done, number)) = read(query.unwrap_or_default(), now) {
            p.notice.{ (if number > 0 { "well" } else { "doubtful" }) } role="status" { (done.sentence(number)) }
        }
    }
}

fn read(query: &str, now: DateTime<Utc>) -> Option<(Done, u64)> {
    let value = |name: &str| {
        url::form_urlencoded::parse(query.as_bytes()).find(|(other, _)| other == name).map(|(_, value)| value)
    };
    let done = Done::named(&value("done")?)?;
    let number = value("number")?.parse().ok()?;
    let at = DateTime::from_timestamp(value("at")?.parse().ok()?, 0)?;
    // Replicas need not have quite the same time.
    ((now - at).abs() <= TOLD_FOR).then_some((done, number))
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).expect("a time")
    }

    /// What stands behind the question mark of the page that one is sent to.
    fn query(path: &str, done: Done, number: u64) -> String {
        let response = see_done(path, done, number, now());
        let location = response.headers()[header::LOCATION].to_str().expect("text");
        location.split_once('?').expect("a query").1.to_owned()
    }

    #[test]
    fn what_was_done_is_told_for_a_moment() {
        for done in Done::ALL {
            for path in ["/queue", "/queue?state=pending"] {
                let query = query(path, done, 2);
                assert_eq!(read(&query, now() + TOLD_FOR), Some((done, 2)), "{query}");
                assert_eq!(read(&query, now() + TOLD_FOR + TimeDelta::seconds(1)), None, "{query}");
            }
        }
        let page = told(Some(&query("/queue", Done::Retried, 1)), now()).into_string();
        assert_eq!(page, r#"<p class="notice well" role="status">1 delivery is tried again now.</p>"#);
        let page = told(Some(&query("/queue", Done::Retried, 0)), now()).into_string();
        assert!(page.contains("doubtful") && page.contains("Nothing is left to retry"), "{page}");
    }

    #[test]
    fn an_address_can_say_nothing_else() {
        let at = now().timestamp();
        for query in [
            String::new(),
            format!("done=hello&number=1&at={at}"),
            format!("done=%3Cb%3E&number=1&at={at}"),
            format!("done=retried&number=many&at={at}"),
            format!("done=retried&at={at}"),
            "done=retried&number=1".to_owned(),
            format!("done=retried&number=1&at={}", i64::MAX),
        ] {
            assert_eq!(told(Some(&query), now()).into_string(), "", "{query}");
        }
        assert_eq!(told(None, now()).into_string(), "");
    }
}
