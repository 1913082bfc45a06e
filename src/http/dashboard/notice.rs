//! What was done, told on the page that one comes back to.
//!
//! A deed is answered with the way to a page, so the address has to say what it did: by a word of ours, a number and the
//! time. Only these words become sentences, so that no link can put others on a page; and only for a moment, so that
//! neither reloading a page nor a bookmark tells for ever of what was done once.

use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::page::{Parameters, count, see};

/// How long it is told.
const TOLD_FOR: TimeDelta = TimeDelta::seconds(30);

/// What was done to so many, by the word in the address.
fn sentence(done: &str, number: u64) -> Option<String> {
    Some(match (done, number) {
        ("paused", _) => "Paused. Messages wait until you resume it.".to_owned(),
        ("resumed", _) => "Resumed. What waits goes out again.".to_owned(),
        ("retried", 0) => {
            "Nothing is left to retry: it was applied or discarded meanwhile, or is tried right now."
                .to_owned()
        }
        ("discarded", 0) => "Nothing is left to discard: it was applied or discarded meanwhile.".to_owned(),
        ("sent-again", 0) => "Nothing is left to send again: no message is dead.".to_owned(),
        ("given-up", 0) => {
            "Nothing was discarded: no message is dead, or only deletions are, and they stay.".to_owned()
        }
        ("retried", _) => format!("{} tried again now.", count(number, "delivery is", "deliveries are")),
        ("discarded", _) => format!("{} discarded.", count(number, "delivery was", "deliveries were")),
        ("sent-again", _) => format!("{} will be sent again.", count(number, "message", "messages")),
        ("given-up", _) => format!("{} discarded.", count(number, "message was", "messages were")),
        _ => return None,
    })
}

/// Go there, and be told what was done to so many.
pub(super) fn see_done(path: &str, done: &str, number: u64, now: DateTime<Utc>) -> Response {
    let separator = if path.contains('?') { '&' } else { '?' };
    see(&format!("{path}{separator}done={done}&number={number}&at={}", now.timestamp()))
}

/// What the address of a page says was done a moment ago.
pub(super) fn told(asked: &Parameters, now: DateTime<Utc>) -> Markup {
    html! {
        @if let Some((sentence, number)) = read(asked, now) {
            p.notice.{ (if number > 0 { "well" } else { "doubtful" }) } role="status" { (sentence) }
        }
    }
}

fn read(asked: &Parameters, now: DateTime<Utc>) -> Option<(String, u64)> {
    let number = asked.get("number")?.parse().ok()?;
    let at = DateTime::from_timestamp(asked.get("at")?.parse().ok()?, 0)?;
    // Replicas need not have quite the same time.
    let is_new = (now - at).abs() <= TOLD_FOR;
    sentence(asked.get("done")?, number).filter(|_| is_new).map(|sentence| (sentence, number))
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::{super::page::parameters, *};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).expect("a time")
    }

    /// What stands behind the question mark of the page that one is sent to.
    fn query(path: &str, done: &str, number: u64) -> Parameters {
        let response = see_done(path, done, number, now());
        let location = response.headers()[header::LOCATION].to_str().expect("text");
        parameters(location.split_once('?').map(|(_, query)| query))
    }

    #[test]
    fn what_was_done_is_told_for_a_moment() {
        for done in ["retried", "discarded", "sent-again", "given-up", "paused", "resumed"] {
            for path in ["/queue", "/queue?state=pending"] {
                let query = query(path, done, 2);
                let told = (sentence(done, 2).expect("a sentence"), 2);
                assert_eq!(read(&query, now() + TOLD_FOR), Some(told), "{query:?}");
                assert_eq!(read(&query, now() + TOLD_FOR + TimeDelta::seconds(1)), None, "{query:?}");
            }
        }
        let page = told(&query("/queue", "retried", 1), now()).into_string();
        assert_eq!(page, r#"<p class="notice well" role="status">1 delivery is tried again now.</p>"#);
        let page = told(&query("/queue", "retried", 0), now()).into_string();
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
            assert_eq!(told(&parameters(Some(&query)), now()).into_string(), "", "{query}");
        }
        assert_eq!(told(&parameters(None), now()).into_string(), "");
    }
}
