//! Error reports that the real program sends to Sentry.

use serde_json::{Value, json};

use crate::{
    receivers::{Received, Receiver, Reply, reply},
    service::{Host, SECRET, eventually, milliseconds, on_each_keeper, post, user},
};

on_each_keeper!(
    an_error_is_reported_with_type_and_id_of_the_event_and_nothing_of_its_body,
    whether_sentry_takes_reports_harms_nothing,
);

/// A name that appears nowhere else.
const NAME: &str = "Quillhammer";

fn dsn(receiver: &Receiver) -> String {
    format!("{}/42", receiver.url.replace("http://", "http://k3y@"))
}

/// The event in an envelope, which has a header, an item header and the item.
fn event(received: &Received) -> Value {
    assert_eq!((received.method.as_str(), received.path.as_str()), ("POST", "/api/42/envelope/"));
    assert!(received.header("x-sentry-auth").contains("sentry_key=k3y"));
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[1]["type"], "event");
    lines[2].clone()
}

fn an_error_is_reported_with_type_and_id_of_the_event_and_nothing_of_its_body(host: &mut Host) {
    let sentry = Receiver::start(|_| reply(200, "{}"));
    host.set("SENTRY_DSN", &dsn(&sentry));
    host.set("SENTRY_ENVIRONMENT", "staging");
    let service = host.serve();
    let delivery = post(&user("user.created", "user_1", milliseconds(), NAME));

    // A statement that the database refuses counts as a bug in clerk-sync.
    host.sql("ALTER TABLE entity_versions RENAME TO away");
    assert_eq!(service.post(&delivery).status, 503);
    eventually("reported", || !sentry.received().is_empty());
    let reported = event(&sentry.one());
    assert_eq!(reported["tags"], json!({ "event_type": "user.created", "svix_id": delivery.id }));
    // Without a level, an event is an error.
    assert_eq!((&reported["level"], &reported["environment"]), (&Value::Null, &json!("staging")));
    assert_eq!(reported["release"], concat!("clerk-sync@", env!("CARGO_PKG_VERSION")));
    assert_eq!(reported["logger"], "clerk_sync::sync::attempt");
    assert!(
        reported["message"].as_str().unwrap().contains("refused one of clerk-sync's statements"),
        "{reported}"
    );
    assert_eq!(reported["extra"]["deliveries"], 1, "{reported}");
    let names: Vec<&str> = reported.as_object().unwrap().keys().map(String::as_str).collect();
    for name in &names {
        let allowed = [
            "environment",
            "event_id",
            "extra",
            "level",
            "logger",
            "message",
            "platform",
            "release",
            "sdk",
            "tags",
            "timestamp",
        ];
        assert!(allowed.contains(name), "{name} is reported: {reported}");
    }
    host.sql("ALTER TABLE away RENAME TO entity_versions");

    // An unusable event is reported too; an error that passes by itself is not.
    let mut unusable = user("user.created", "user_2", milliseconds(), NAME);
    unusable["data"] = json!({ "id": "user_2", "first_name": [NAME] });
    let unusable = post(&unusable);
    assert_eq!(service.post(&unusable).word(), "parked");
    // The last report is still sent at shutdown.
    service.stop();
    let received = sentry.received();
    assert_eq!(received.len(), 2, "{received:?}");
    let dead = event(&received[1]);
    assert_eq!(dead["tags"], json!({ "event_type": "user.created", "svix_id": unusable.id }));
    for one in &received {
        let text = String::from_utf8_lossy(&one.body);
        for secret in [NAME, "Lovelace", "user_1", "user_2", "@example.com", "192.0.2.77", SECRET] {
            assert!(!text.contains(secret), "{secret} was reported: {text}");
        }
    }
}

fn whether_sentry_takes_reports_harms_nothing(host: &mut Host) {
    let (silent, refusing) = (Receiver::start(|_| Reply::Silence), Receiver::start(|_| reply(403, "")));
    for sentry in [&silent, &refusing] {
        host.set("SENTRY_DSN", &dsn(sentry));
        let mut service = host.serve();
        host.sql("ALTER TABLE entity_versions RENAME TO away");
        for number in 0..5 {
            let delivery = post(&user("user.created", &format!("user_{number}"), milliseconds(), NAME));
            assert_eq!(service.post(&delivery).status, 503);
        }
        host.sql("ALTER TABLE away RENAME TO entity_versions");
        eventually("asked", || !sentry.received().is_empty());
        service.terminate();
        let status = service.wait(std::time::Duration::from_secs(10));
        assert_eq!(status.code(), Some(0), "{}", service.log());
        assert!(service.log().matches("Sentry does not accept reports").count() <= 1, "{}", service.log());
    }
}
