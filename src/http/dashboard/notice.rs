//! The result of an action, shown on the page that follows.
//!
//! An action redirects to a page, so the URL has to carry the result: a fixed word, a number and the time. Only these words
//! become sentences, so a link cannot put other text on a page. They are shown only briefly, so reloading a page or opening
//! a bookmark does not repeat an old result.

use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::page::{Parameters, count, see};

/// How long the result is shown.
const TOLD_FOR: TimeDelta = TimeDelta::seconds(30);

/// The sentence for the word in the URL.
fn sentence(done: &str, number: u64) -> Option<String> {
    Some(match (done, number) {
        ("paused", _) => "Paused. Messages wait until you resume it.".to_owned(),
        ("resumed", _) => "Resumed. Waiting messages are delivered again.".to_owned(),
        ("retried", 0) => {
            "Nothing to retry: it was applied or discarded meanwhile, or is being applied now.".to_owned()
        }
        ("discarded", 0) => "Nothing to discard: it was applied or discarded meanwhile.".to_owned(),
        ("sent-again", 0) => "Nothing to send again: no message is dead.".to_owned(),
        ("given-up", 0) => {
            "Nothing was discarded: no message is dead, or only deletions are, which are kept.".to_owned()
        }
        ("retried", _) => format!("{} retried now.", count(number, "delivery is", "deliveries are")),
        ("discarded", _) => format!("{} discarded.", count(number, "delivery was", "deliveries were")),
        ("sent-again", _) => format!("{} will be sent again.", count(number, "message", "messages")),
        ("given-up", _) => format!("{} discarded.", count(number, "message was", "messages were")),
        _ => return None,
    })
}

/// Redirect to a page that shows the result.
pub(super) fn see_done(path: &str, done: &str, number: u64, now: DateTime<Utc>) -> Response {
    let separator = if path.contains('?') { '&' } else { '?' };
    see(&format!("{path}{separator}done={done}&number={number}&at={}", now.timestamp()))
}

/// The recent result that the URL of a page carries.
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
    // The clocks of replicas may differ slightly.
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

    /// The query of the page that the answer redirects to.
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
        assert_eq!(page, r#"<p class="notice well" role="status">1 delivery is retried now.</p>"#);
        let page = told(&query("/queue", "retried", 0), now()).into_string();
        assert!(page.contains("doubtful") && page.contains("Nothing to retry"), "{page}");
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
