//! The requests that each kind of sink sends, and how it interprets the answers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use clerk_sync::{
    clerk::{Clock, signature::Secret},
    entity::USER,
    model::{Message, MessageType},
    work::sinks::{
        Again, InMemory, Memory, Outbound, Recipient, Refusal, Sink,
        mailchimp::Mailchimp,
        segment::{Dialect, Regulations, Segment},
        webhook::Webhook,
    },
};
use serde_json::{Value, json};

use crate::{
    receivers::{self, Receiver, Reply, nowhere, reply, reply_with},
    service::{self, Host},
    world::{self, World, clerk_id},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A timeout that no request reaches, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(25);

fn outbound() -> Outbound {
    Outbound::new(Arc::new(Utc::now)).unwrap()
}

fn message(kind: MessageType, data: &Value) -> Message {
    Message {
        id: "msg_5f2b".to_owned(),
        kind,
        version: Message::VERSION,
        timestamp: Utc::now(),
        data: data.as_object().unwrap().clone(),
        changed_fields: Vec::new(),
    }
}

fn ada(kind: MessageType, email: &str) -> Message {
    let mut message = message(
        kind,
        &json!({ "clerk_id": "user_1", "email": email, "first_name": "Ada", "last_name": "Byron" }),
    );
    message.changed_fields.push("email".to_owned());
    message
}

fn deletion() -> Message {
    message(MessageType::deleted(&USER), &json!({ "clerk_id": "user_1" }))
}

/// Deliver a message as it is stored.
fn deliver(receiver: &Receiver, sink: &dyn Sink, message: &Message) -> Result<(), Refusal> {
    deliver_with(receiver, sink, message, &InMemory::default())
}

fn deliver_with(
    receiver: &Receiver,
    sink: &dyn Sink,
    message: &Message,
    memory: &dyn Memory,
) -> Result<(), Refusal> {
    let body = serde_json::to_string(message).unwrap();
    receiver.run(sink.deliver(message, &body, memory))
}

mod webhooks {
    use super::*;

    fn webhook(receiver: &Receiver, secrets: &[&str]) -> Webhook {
        Webhook {
            outbound: outbound(),
            url: format!("{}/hooks?tenant=7", receiver.url).parse().unwrap(),
            secrets: secrets.iter().map(|secret| Secret::parse(secret).unwrap()).collect(),
            timeout: PATIENCE,
        }
    }

    /// The result of a delivery that gets this answer.
    fn answered(answer: impl Fn() -> Reply + Send + Sync + 'static) -> Result<(), Refusal> {
        let receiver = Receiver::start(move |_| answer());
        let message = ada(MessageType::created(&USER), "ada@example.com");
        deliver(&receiver, &webhook(&receiver, &[SECRET]), &message)
    }

    #[test]
    fn a_message_is_posted_as_it_is_stored_and_verifies_with_the_libraries_of_receivers() {
        let receiver = Receiver::start(|_| reply(204, ""));
        let message = ada(MessageType::created(&USER), "ada@example.com");
        deliver(&receiver, &webhook(&receiver, &[NEW_SECRET, SECRET]), &message).unwrap();

        let request = receiver.one();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hooks"));
        assert_eq!(request.body, serde_json::to_vec(&message).unwrap());
        assert_eq!(request.header("content-type"), "application/json");
        assert_eq!(request.header("user-agent"), concat!("clerk-sync/", env!("CARGO_PKG_VERSION")));
        assert_eq!(request.header("webhook-id"), "msg_5f2b");
        // While the receiver changes its secret, both secrets verify.
        for secret in [SECRET, NEW_SECRET] {
            svix::webhooks::Webhook::new(secret).unwrap().verify(&request.body, &request.headers).unwrap();
            standardwebhooks::Webhook::new(secret).unwrap().verify(&request.body, &request.headers).unwrap();
        }
        let stranger = "whsec_plJ3nmyCDGBKInavdOK15jsl";
        assert!(
            svix::webhooks::Webhook::new(stranger).unwrap().verify(&request.body, &request.headers).is_err()
        );
    }

    #[test]
    fn the_id_stays_and_the_time_is_that_of_the_attempt() {
        let receiver = Receiver::start(|_| reply(500, ""));
        let now = Arc::new(Mutex::new(DateTime::from_timestamp(1_700_000_000, 0).unwrap()));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || *now.lock().unwrap())
        };
        let sink = Webhook { outbound: Outbound::new(clock).unwrap(), ..webhook(&receiver, &[SECRET]) };
        let message = ada(MessageType::created(&USER), "ada@example.com");
        deliver(&receiver, &sink, &message).unwrap_err();
        *now.lock().unwrap() += TimeDelta::hours(1);
        deliver(&receiver, &sink, &message).unwrap_err();

        let requests = receiver.received();
        let headers = |name: &str| -> Vec<String> {
            requests.iter().map(|request| request.header(name).to_owned()).collect()
        };
        assert_eq!(headers("webhook-id"), ["msg_5f2b", "msg_5f2b"]);
        assert_eq!(headers("webhook-timestamp"), ["1700000000", "1700003600"]);
        assert_eq!(requests[0].body, requests[1].body);
    }

    #[test]
    fn every_success_is_a_success_whatever_stands_in_it() {
        for status in [200, 201, 202, 204] {
            assert_eq!(answered(move || reply(status, "")), Ok(()), "{status}");
        }
        assert_eq!(
            answered(|| reply(200, vec![b'x'; 5_000_000])),
            Ok(()),
            "an answer that is too long to read counts as accepted"
        );
    }

    #[test]
    fn what_is_wrong_with_the_message_is_never_tried_again_and_anything_else_later() {
        for (status, again) in [
            (400, Again::Never),
            (422, Again::Never),
            (401, Again::Later(None)),
            (404, Again::Later(None)),
            (410, Again::Later(None)),
            (500, Again::Later(None)),
        ] {
            let refusal = answered(move || reply(status, "ada@example.com")).unwrap_err();
            assert_eq!(refusal.again, again, "{status}");
            assert!(refusal.reason.starts_with(&format!("answered {status} ")), "{refusal}");
            assert!(!refusal.reason.contains('@') && !refusal.is_unreachable(), "{refusal}");
        }
    }

    #[test]
    fn retry_after_is_honoured_as_seconds_and_as_a_date() {
        let refusal = answered(|| reply_with(429, "retry-after", "120")).unwrap_err();
        assert_eq!(refusal.again, Again::Later(Some(Duration::from_mins(2))));
        let refusal = answered(|| {
            let date = (Utc::now() + TimeDelta::hours(2)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
            reply_with(503, "retry-after", &date)
        })
        .unwrap_err();
        let Again::Later(Some(wait)) = refusal.again else { panic!("{refusal:?}") };
        assert!(wait > Duration::from_mins(115) && wait <= Duration::from_hours(2), "{wait:?}");
    }

    /// The doubts that `test` reports about an endpoint with these answers to a genuine message and to any other.
    fn doubts(genuine: fn() -> Reply, other: fn() -> Reply) -> Vec<String> {
        let receiver = Receiver::start(move |request| {
            let verifier = svix::webhooks::Webhook::new(SECRET).unwrap();
            if verifier.verify(&request.body, &request.headers).is_ok() { genuine() } else { other() }
        });
        let message = ada(MessageType::created(&USER), "ada@example.com");
        let body = serde_json::to_string(&message).unwrap();
        let doubts = receiver.run(webhook(&receiver, &[SECRET]).test(&message, &body)).unwrap();
        let ids: Vec<String> =
            receiver.received().iter().map(|request| request.header("webhook-id").to_owned()).collect();
        assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
        doubts
    }

    #[test]
    fn a_test_doubts_an_endpoint_that_takes_a_wrong_signature_or_says_nothing() {
        for well in [|| reply(204, ""), || reply(200, "ok"), || reply(202, "")] {
            assert!(doubts(well, || reply(401, "")).is_empty());
        }
        let taken = doubts(|| reply(204, ""), || reply(204, ""));
        assert!(taken.len() == 1 && taken[0].contains("wrong signature"), "{taken:?}");
        let empty = doubts(|| reply(200, ""), || reply(400, ""));
        assert!(empty.len() == 1 && empty[0].contains("200 OK with an empty body"), "{empty:?}");
        assert_eq!(doubts(|| reply(200, ""), || reply(200, "")).len(), 2);
    }

    #[test]
    fn no_redirect_is_followed() {
        let elsewhere = Receiver::start(|_| reply(200, ""));
        let location = elsewhere.url.clone();
        for status in [301, 302, 303, 307, 308] {
            let location = location.clone();
            let refusal = answered(move || reply_with(status, "location", &location)).unwrap_err();
            assert_eq!(refusal.again, Again::Later(None));
            assert!(refusal.reason.ends_with("redirects are not followed"), "{refusal}");
        }
        assert!(elsewhere.received().is_empty());
    }

    #[test]
    fn silence_ends_with_the_time_limit_and_nobody_there_at_once() {
        let receiver = Receiver::start(|_| Reply::Silence);
        let message = ada(MessageType::created(&USER), "ada@example.com");
        let sink = Webhook { timeout: Duration::from_millis(300), ..webhook(&receiver, &[SECRET]) };
        let silence = deliver(&receiver, &sink, &message).unwrap_err();
        assert_eq!((silence.reason.as_str(), silence.again), ("no answer in time", Again::Later(None)));
        assert!(silence.is_unreachable());

        let sink = Webhook { url: nowhere().parse().unwrap(), timeout: PATIENCE, ..sink };
        let refusal = deliver(&receiver, &sink, &message).unwrap_err();
        assert_eq!((refusal.reason.as_str(), refusal.again), ("no connection", Again::Later(None)));
        assert!(refusal.is_unreachable());
    }
}

mod segment {
    use super::*;

    struct Workspace {
        receiver: Receiver,
        state: Arc<Mutex<receivers::Segment>>,
    }

    impl Workspace {
        fn start() -> Self {
            let state = Arc::new(Mutex::new(receivers::Segment::default()));
            let answering = Arc::clone(&state);
            let receiver = Receiver::start(move |request| answering.lock().unwrap().answer(request));
            Self { receiver, state }
        }

        fn sink(&self) -> Segment {
            let url: url::Url = self.receiver.url.parse().unwrap();
            Segment {
                outbound: outbound(),
                url: url.clone(),
                write_key: "write-key".into(),
                regulations: Regulations { url, token: "public-api-token".into(), dialect: Dialect::Segment },
                timeout: PATIENCE,
            }
        }

        fn deliver(&self, message: &Message) -> Result<(), Refusal> {
            deliver(&self.receiver, &self.sink(), message)
        }

        fn traits(&self) -> Value {
            json!(self.state.lock().unwrap().traits.get("user_1"))
        }
    }

    #[test]
    fn a_user_is_identified_and_a_null_clears_what_was_there() {
        let workspace = Workspace::start();
        workspace.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        assert_eq!(
            workspace.traits(),
            json!({ "email": "ada@example.com", "firstName": "Ada", "lastName": "Byron" })
        );
        let data = json!({ "clerk_id": "user_1", "email": "ada@lovelace.example", "last_name": null });
        workspace.deliver(&message(MessageType::updated(&USER), &data)).unwrap();
        assert_eq!(workspace.traits(), json!({ "email": "ada@lovelace.example", "firstName": "Ada" }));
        let ids: Vec<Value> =
            workspace.receiver.received().iter().map(|request| request.json()["messageId"].clone()).collect();
        assert_eq!(ids, ["msg_5f2b", "msg_5f2b"]);
    }

    #[test]
    fn an_erased_user_is_deleted_and_suppressed() {
        let workspace = Workspace::start();
        workspace.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        workspace.deliver(&deletion()).unwrap();
        workspace.deliver(&deletion()).unwrap();
        workspace.deliver(&ada(MessageType::updated(&USER), "ada@example.com")).unwrap();
        assert_eq!(workspace.traits(), Value::Null);
    }

    #[test]
    fn an_erasure_that_was_asked_for_before_is_done() {
        let workspace = Workspace::start();
        let exists = json!({ "errors": [{ "type": "bad-request", "message": "Regulation already exists" }] });
        workspace.state.lock().unwrap().trouble = Some((400, exists));
        assert_eq!(workspace.deliver(&deletion()), Ok(()));
        let other = json!({ "errors": [{ "type": "bad-request", "message": "invalid" }] });
        workspace.state.lock().unwrap().trouble = Some((400, other));
        assert_eq!(workspace.deliver(&deletion()).unwrap_err().again, Again::Never);
    }

    #[test]
    fn the_public_api_says_in_its_body_how_long_to_wait() {
        let workspace = Workspace::start();
        let limited = json!({ "errors": [{
            "type": "RequestError", "message": "Too many requests",
            "data": { "remainingPoints": 0, "msBeforeNext": 57_647, "consumedPoints": 21 },
        }] });
        workspace.state.lock().unwrap().trouble = Some((429, limited));
        let refusal = workspace.deliver(&deletion()).unwrap_err();
        assert_eq!(refusal.again, Again::Later(Some(Duration::from_millis(57_647))));
    }

    #[test]
    fn rudderstack_is_asked_in_its_own_words() {
        let workspace = Workspace::start();
        let destinations = vec!["2FIKkByqn37FhzczP23eZmURciA".to_owned()];
        for (destinations, expected) in
            [(destinations.clone(), json!(destinations)), (Vec::new(), Value::Null)]
        {
            let mut sink = workspace.sink();
            sink.regulations.dialect = Dialect::RudderStack { destinations };
            deliver(&workspace.receiver, &sink, &deletion()).unwrap();
            let asked = workspace.receiver.received().pop().unwrap().json();
            assert_eq!(asked["destinationIds"], expected);
            assert_eq!(asked["users"], json!([{ "userId": "user_1" }]));
        }
    }

    #[test]
    fn a_wrong_key_is_told_without_the_key() {
        let workspace = Workspace::start();
        let mut sink = workspace.sink();
        sink.write_key = "hunter2".into();
        sink.regulations.token = "hunter2".into();
        for message in [ada(MessageType::created(&USER), "ada@example.com"), deletion()] {
            let refusal = deliver(&workspace.receiver, &sink, &message).unwrap_err();
            assert_eq!(refusal.reason, "answered 401 Unauthorized");
            assert_eq!(refusal.again, Again::Later(None));
        }
    }

    #[test]
    fn a_test_leaves_nobody_behind() {
        let workspace = Workspace::start();
        let test = ada(MessageType::created(&USER), "ada@example.com");
        let body = serde_json::to_string(&test).unwrap();
        let doubts = workspace.receiver.run(workspace.sink().test(&test, &body)).unwrap();
        assert!(doubts.is_empty(), "{doubts:?}");
        assert_eq!(workspace.receiver.received().len(), 2);
        assert_eq!(workspace.traits(), Value::Null);
    }
}

mod mailchimp {
    use super::*;

    struct Audience {
        receiver: Receiver,
        state: Arc<Mutex<receivers::Mailchimp>>,
        memory: InMemory,
    }

    impl Audience {
        fn start() -> Self {
            let state = Arc::new(Mutex::new(receivers::Mailchimp::default()));
            let answering = Arc::clone(&state);
            let receiver = Receiver::start(move |request| answering.lock().unwrap().answer(request));
            Self { receiver, state, memory: InMemory::default() }
        }

        fn sink(&self) -> Mailchimp {
            Mailchimp {
                outbound: outbound(),
                url: self.receiver.url.parse().unwrap(),
                api_key: "key-us21".into(),
                list_id: "a1b2c3d4e5".to_owned(),
                status_if_new: "transactional".to_owned(),
                tags: vec!["new-user".to_owned()],
                clerk_id_merge_field: "CLERKID".to_owned(),
                timeout: PATIENCE,
            }
        }

        fn deliver(&self, message: &Message) -> Result<(), Refusal> {
            deliver_with(&self.receiver, &self.sink(), message, &self.memory)
        }

        fn emails(&self) -> Vec<String> {
            self.state.lock().unwrap().emails().into_iter().map(ToOwned::to_owned).collect()
        }

        fn only(&self) -> receivers::Contact {
            let state = self.state.lock().unwrap();
            assert_eq!(state.contacts.len(), 1, "{:?}", state.emails());
            state.contacts[0].clone()
        }

        fn remembered(&self) -> Option<String> {
            self.receiver.run(self.memory.recall()).unwrap()
        }
    }

    #[test]
    fn a_new_user_becomes_a_tagged_contact_who_has_subscribed_to_nothing() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "Ada@Example.com")).unwrap();
        audience.deliver(&ada(MessageType::created(&USER), "Ada@Example.com")).unwrap();
        let contact = audience.only();
        assert_eq!((contact.email.as_str(), contact.status.as_str()), ("Ada@Example.com", "transactional"));
        assert_eq!(
            Value::Object(contact.merge_fields),
            json!({ "FNAME": "Ada", "LNAME": "Byron", "CLERKID": "user_1" })
        );
        assert_eq!(contact.tags.into_iter().collect::<Vec<_>>(), ["new-user"]);
        assert_eq!(audience.remembered(), Some(contact.contact_id), "the memory contains no address");
    }

    #[test]
    fn who_is_there_already_keeps_their_status_and_is_no_new_user_by_an_update() {
        let audience = Audience::start();
        audience.state.lock().unwrap().add("ada@example.com").status = "unsubscribed".to_owned();
        audience.deliver(&ada(MessageType::updated(&USER), "ada@example.com")).unwrap();
        let contact = audience.only();
        assert_eq!(contact.status, "unsubscribed");
        assert_eq!(contact.merge_fields["FNAME"], "Ada");
        assert!(contact.tags.is_empty());
    }

    #[test]
    fn a_contact_moves_with_its_user_to_another_address() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        let before = audience.only();
        audience.deliver(&ada(MessageType::updated(&USER), "ada@lovelace.example")).unwrap();
        let after = audience.only();
        assert_eq!((after.email.as_str(), &after.contact_id), ("ada@lovelace.example", &before.contact_id));
        assert!(
            audience.state.lock().unwrap().forgotten.is_empty(),
            "nothing is permanently deleted, so the user can change back"
        );
        audience.deliver(&deletion()).unwrap();
        assert_eq!(audience.emails(), [""; 0]);
    }

    #[test]
    fn who_has_no_address_any_more_is_archived_and_comes_back_with_one() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        let mut without = ada(MessageType::updated(&USER), "");
        without.data.insert("email".to_owned(), Value::Null);
        audience.deliver(&without).unwrap();
        audience.deliver(&without).unwrap();
        assert_eq!(audience.only().status, "archived");
        audience.deliver(&ada(MessageType::updated(&USER), "ada@lovelace.example")).unwrap();
        assert_eq!(audience.only().status, "transactional");
        audience.deliver(&without).unwrap();
        audience.deliver(&deletion()).unwrap();
        assert_eq!(audience.emails(), [""; 0], "an archived contact is erased too");
    }

    #[test]
    fn a_user_without_an_address_is_none_of_mailchimps_business() {
        let audience = Audience::start();
        let data = json!({ "clerk_id": "user_1", "email": null, "first_name": "Ada" });
        audience.deliver(&message(MessageType::created(&USER), &data)).unwrap();
        audience.deliver(&deletion()).unwrap();
        assert!(audience.receiver.received().is_empty());
    }

    #[test]
    fn a_message_that_says_nothing_of_the_address_archives_nobody() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        let data = json!({ "clerk_id": "user_1", "first_name": "Augusta" });
        audience.deliver(&message(MessageType::updated(&USER), &data)).unwrap();
        assert_eq!(audience.only().status, "transactional");
    }

    #[test]
    fn an_erasure_deletes_for_good_and_may_be_repeated() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        audience.deliver(&deletion()).unwrap();
        audience.deliver(&deletion()).unwrap();
        assert_eq!(audience.emails(), [""; 0]);
        assert!(audience.state.lock().unwrap().forgotten.contains("ada@example.com"));

        // Mailchimp allows a user with the same address to return only through a Mailchimp form.
        let again = Audience { memory: InMemory::default(), ..audience };
        let refusal = again.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap_err();
        assert_eq!(refusal.again, Again::Never);
        assert!(refusal.reason.contains("permanently deleted before"), "{refusal}");
    }

    #[test]
    fn a_contact_that_somebody_removed_by_hand_is_made_again() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        audience.state.lock().unwrap().contacts.clear();
        audience.deliver(&ada(MessageType::updated(&USER), "ada@example.com")).unwrap();
        assert_eq!(audience.remembered(), Some(audience.only().contact_id));
    }

    #[test]
    fn an_audience_that_is_not_there_is_no_erasure() {
        let audience = Audience::start();
        audience.deliver(&ada(MessageType::created(&USER), "ada@example.com")).unwrap();
        let sink = Mailchimp { list_id: "other".to_owned(), ..audience.sink() };
        let refusal = deliver_with(&audience.receiver, &sink, &deletion(), &audience.memory).unwrap_err();
        assert_eq!(refusal.again, Again::Later(None));
        assert_eq!(refusal.reason, "there is no audience with this list_id");
        let sink = Mailchimp { api_key: "hunter2-us21".into(), ..audience.sink() };
        let refusal = deliver_with(&audience.receiver, &sink, &deletion(), &audience.memory).unwrap_err();
        assert_eq!(
            (refusal.reason.as_str(), refusal.again),
            ("answered 401 Unauthorized", Again::Later(None))
        );
        assert_eq!(audience.emails(), ["ada@example.com"]);
    }

    #[test]
    fn an_address_that_mailchimp_does_not_believe_is_told_without_it() {
        let audience = Audience::start();
        let refusal = audience.deliver(&ada(MessageType::created(&USER), "ada@fake.example")).unwrap_err();
        assert_eq!(refusal.again, Again::Never);
        assert!(refusal.reason.contains("does not accept the address"), "{refusal}");
        assert!(!refusal.reason.contains('@'), "{refusal}");
    }

    /// A memory that fails at its n-th write.
    struct Forgetful<'a> {
        inner: &'a InMemory,
        left: AtomicUsize,
    }

    #[async_trait]
    impl Memory for Forgetful<'_> {
        async fn recall(&self) -> Result<Option<String>, Refusal> {
            self.inner.recall().await
        }

        async fn keep(&self, reference: &str) -> Result<(), Refusal> {
            let left = self.left.fetch_sub(1, Ordering::SeqCst);
            if left == 0 {
                return Err(Refusal { reason: "a crash".to_owned(), again: Again::Later(None) });
            }
            self.inner.keep(reference).await
        }

        async fn holders(&self, address: &str) -> Result<Vec<String>, Refusal> {
            self.inner.holders(address).await
        }
    }

    #[test]
    fn wherever_a_delivery_breaks_off_the_erasure_finds_the_contact() {
        let (old, new) = ("ada@example.com", "ada@lovelace.example");
        let stories: [&[(MessageType, &str)]; 3] = [
            &[(MessageType::created(&USER), old)],
            &[(MessageType::created(&USER), old), (MessageType::updated(&USER), new)],
            &[(MessageType::updated(&USER), new), (MessageType::updated(&USER), old)],
        ];
        let mut broken = 0;
        let mut audience = Audience::start();
        let sink = audience.sink();
        for story in stories {
            for other_has_the_new_address in [false, true] {
                for (lost_answer, lost_write) in
                    (0..12).map(|n| (Some(n), None)).chain((0..4).map(|n| (None, Some(n))))
                {
                    *audience.state.lock().unwrap() = receivers::Mailchimp::default();
                    audience.memory = InMemory::default();
                    if other_has_the_new_address {
                        audience.state.lock().unwrap().add(new);
                    }
                    let (last, before) = story.split_last().unwrap();
                    for (kind, email) in before {
                        deliver_with(&audience.receiver, &sink, &ada(*kind, email), &audience.memory)
                            .unwrap();
                    }
                    audience.state.lock().unwrap().break_after = lost_answer;
                    let memory = Forgetful {
                        inner: &audience.memory,
                        left: AtomicUsize::new(lost_write.unwrap_or(usize::MAX)),
                    };
                    let message = ada(last.0, last.1);
                    let result = deliver_with(&audience.receiver, &sink, &message, &memory);
                    broken += usize::from(result.is_err());
                    audience.state.lock().unwrap().break_after = None;
                    deliver_with(&audience.receiver, &sink, &deletion(), &audience.memory).unwrap();
                    let state = audience.state.lock().unwrap();
                    let told =
                        format!("{story:?} {other_has_the_new_address} {lost_answer:?} {lost_write:?}");
                    assert!(state.of("user_1").is_empty(), "{told}");
                    assert!(!state.emails().contains(&old), "{told}: {:?}", state.emails());
                    drop(state);
                }
            }
        }
        assert!(broken > 20, "only {broken} deliveries failed");
    }

    #[test]
    fn a_test_needs_the_merge_field_and_leaves_nobody_behind() {
        let audience = Audience::start();
        let test = |audience: &Audience| {
            let test = ada(MessageType::created(&USER), "ada@fake.example");
            let body = serde_json::to_string(&test).unwrap();
            audience.receiver.run(audience.sink().test(&test, &body))
        };
        test(&audience).unwrap();
        assert_eq!(audience.emails(), [""; 0]);
        let forgotten = audience.state.lock().unwrap().forgotten.clone();
        assert_eq!(forgotten.into_iter().collect::<Vec<_>>(), ["clerk-sync-test-msg-5f2b@acme.example"]);
        let sent = audience.receiver.received().len();

        audience.state.lock().unwrap().merge_tags = vec!["FNAME", "LNAME"];
        let refusal = test(&audience).unwrap_err();
        assert!(refusal.reason.starts_with("the audience has no merge field CLERKID"), "{refusal}");
        assert_eq!(audience.receiver.received().len(), sent + 2, "the test only reads");
    }
}

mod mailchimp_moves {
    use std::collections::BTreeMap;

    use super::*;

    /// The current address of each user, as in the table of users.
    type Addresses = Arc<Mutex<BTreeMap<String, String>>>;

    /// The memory of a sink for one user, with access to the table of users.
    #[derive(Default)]
    struct Beside {
        memory: InMemory,
        addresses: Addresses,
    }

    #[async_trait]
    impl Memory for Beside {
        async fn recall(&self) -> Result<Option<String>, Refusal> {
            self.memory.recall().await
        }

        async fn keep(&self, reference: &str) -> Result<(), Refusal> {
            assert!(!reference.contains('@'), "no address is kept: {reference}");
            self.memory.keep(reference).await
        }

        async fn holders(&self, address: &str) -> Result<Vec<String>, Refusal> {
            let addresses = self.addresses.lock().unwrap();
            let at = |(_, at): &(&String, &String)| at.eq_ignore_ascii_case(address);
            Ok(addresses.iter().filter(at).map(|(user, _)| user.clone()).collect())
        }
    }

    /// An audience, and users that change their addresses.
    struct Town {
        receiver: Receiver,
        state: Arc<Mutex<receivers::Mailchimp>>,
        addresses: Addresses,
        memories: BTreeMap<String, Beside>,
        status_if_new: &'static str,
    }

    impl Town {
        fn start() -> Self {
            let state = Arc::new(Mutex::new(receivers::Mailchimp::default()));
            let answering = Arc::clone(&state);
            let receiver = Receiver::start(move |request| answering.lock().unwrap().answer(request));
            let (addresses, memories) = (Addresses::default(), BTreeMap::new());
            Self { receiver, state, addresses, memories, status_if_new: "subscribed" }
        }

        /// Set the address of the user's row.
        fn lives(&self, user: &str, email: &str) {
            self.addresses.lock().unwrap().insert(user.to_owned(), email.to_owned());
        }

        fn tell(&mut self, kind: MessageType, user: &str, email: &str) -> Result<(), Refusal> {
            let mut message = message(kind, &json!({ "clerk_id": user, "email": email, "first_name": user }));
            message.changed_fields.push("email".to_owned());
            if kind == MessageType::deleted(&USER) {
                message.data.retain(|name, _| name == "clerk_id");
            }
            let beside = Beside { addresses: Arc::clone(&self.addresses), ..Beside::default() };
            let memory = self.memories.entry(user.to_owned()).or_insert(beside);
            let sink = Mailchimp {
                outbound: outbound(),
                url: self.receiver.url.parse().unwrap(),
                api_key: "key-us21".into(),
                list_id: "a1b2c3d4e5".to_owned(),
                status_if_new: self.status_if_new.to_owned(),
                tags: Vec::new(),
                clerk_id_merge_field: "CLERKID".to_owned(),
                timeout: PATIENCE,
            };
            deliver_with(&self.receiver, &sink, &message, memory)
        }

        fn signs_up(&mut self, user: &str, email: &str) {
            self.lives(user, email);
            self.tell(MessageType::created(&USER), user, email).unwrap();
        }

        fn moves(&mut self, user: &str, email: &str) {
            self.lives(user, email);
            self.tell(MessageType::updated(&USER), user, email).unwrap();
        }

        fn is_erased(&mut self, user: &str) {
            self.addresses.lock().unwrap().remove(user);
            self.tell(MessageType::deleted(&USER), user, "").unwrap();
        }

        /// The user of the contact with this address, and its status.
        fn at(&self, email: &str) -> (String, String) {
            let state = self.state.lock().unwrap();
            let mut contacts = state.contacts.iter();
            let Some(contact) = contacts.find(|contact| contact.email.eq_ignore_ascii_case(email)) else {
                return of("", "none");
            };
            let owner = contact.merge_fields.get("CLERKID").and_then(Value::as_str).unwrap_or_default();
            of(owner, &contact.status)
        }

        fn add(&self, email: &str, status: &str) {
            status.clone_into(&mut self.state.lock().unwrap().add(email).status);
        }

        fn set(&self, email: &str, status: &str) {
            let mut state = self.state.lock().unwrap();
            let mut contacts = state.contacts.iter_mut();
            status.clone_into(&mut contacts.find(|contact| contact.email == email).unwrap().status);
        }

        fn nothing_is_burnt(&self) {
            assert!(self.state.lock().unwrap().forgotten.is_empty());
        }

        fn nothing_is_left_of(&self, user: &str) {
            let state = self.state.lock().unwrap();
            let told = json!(state.contacts.iter().map(|contact| &contact.merge_fields).collect::<Vec<_>>());
            assert!(!told.to_string().contains(user), "{told}");
        }
    }

    fn of(user: &str, status: &str) -> (String, String) {
        (user.to_owned(), status.to_owned())
    }

    const ADA: &str = "user_ada";
    const BOB: &str = "user_bob";
    const EVE: &str = "user_eve";

    #[test]
    fn who_moves_to_an_address_that_has_a_contact_burns_no_address_and_can_go_back() {
        let mut town = Town::start();
        town.add("two@example.com", "subscribed");
        town.signs_up(ADA, "one@example.com");
        town.moves(ADA, "two@example.com");
        assert_eq!(town.at("two@example.com"), of(ADA, "subscribed"));
        assert_eq!(town.at("one@example.com"), of(ADA, "archived"));
        town.moves(ADA, "One@Example.com");
        assert_eq!(town.at("one@example.com"), of(ADA, "subscribed"));
        assert_eq!(town.at("two@example.com"), of("", "subscribed"), "the contact existed before the user");
        town.nothing_is_burnt();
        town.nothing_is_left_of(BOB);
        town.is_erased(ADA);
        assert_eq!(town.at("one@example.com"), of("", "none"));
        town.nothing_is_left_of(ADA);
    }

    #[test]
    fn every_contact_that_a_user_ever_had_goes_with_them() {
        let mut town = Town::start();
        town.add("two@example.com", "subscribed");
        town.signs_up(ADA, "one@example.com");
        town.moves(ADA, "two@example.com");
        town.moves(ADA, "three@example.com");
        assert_eq!(town.at("three@example.com"), of(ADA, "subscribed"));
        town.moves(ADA, "two@example.com");
        town.is_erased(ADA);
        for address in ["one@example.com", "two@example.com", "three@example.com"] {
            assert_eq!(town.at(address), of("", "none"), "{address}");
        }
    }

    #[test]
    fn swaps_and_rings_of_addresses_lose_nobody_in_any_order() {
        let users = [ADA, BOB, EVE];
        let address = |place: usize| format!("{}@example.com", ["one", "two", "three"][place % 3]);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut town = Town::start();
            for (place, user) in users.into_iter().enumerate() {
                town.signs_up(user, &address(place));
            }
            for (place, user) in users.into_iter().enumerate() {
                town.lives(user, &address(place + 1));
            }
            for place in order {
                town.tell(MessageType::updated(&USER), users[place], &address(place + 1)).unwrap();
            }
            for (place, user) in users.into_iter().enumerate() {
                assert_eq!(town.at(&address(place + 1)), of(user, "subscribed"), "{order:?}");
            }
            assert_eq!(town.state.lock().unwrap().contacts.len(), 3);
            town.nothing_is_burnt();
            town.is_erased(users[order[0]]);
            town.nothing_is_left_of(users[order[0]]);
            assert_eq!(town.state.lock().unwrap().contacts.len(), 2, "the other contacts stay");
        }
    }

    #[test]
    fn who_is_erased_before_the_other_half_of_a_swap_came_burns_nobody_elses_address() {
        let mut town = Town::start();
        town.signs_up(ADA, "one@example.com");
        town.signs_up(BOB, "two@example.com");
        town.lives(BOB, "one@example.com");
        town.moves(ADA, "two@example.com");
        town.is_erased(ADA);
        town.moves(BOB, "one@example.com");
        assert_eq!(town.at("one@example.com"), of(BOB, "subscribed"));
        town.nothing_is_left_of(ADA);

        // The same if an address passes from one user to another.
        town.lives(EVE, "one@example.com");
        town.is_erased(BOB);
        town.signs_up(EVE, "one@example.com");
        assert_eq!(town.at("one@example.com"), of(EVE, "subscribed"));
        town.nothing_is_left_of(BOB);
    }

    #[test]
    fn who_moves_to_an_address_that_mailchimp_refuses_is_not_subscribed_under_the_old_one() {
        let mut town = Town::start();
        town.signs_up(ADA, "one@example.com");
        town.state.lock().unwrap().forgotten.insert("gone@example.com".to_owned());
        for address in ["gone@example.com", "ada@fake.example"] {
            town.lives(ADA, address);
            let refusal = town.tell(MessageType::updated(&USER), ADA, address).unwrap_err();
            assert_eq!(refusal.again, Again::Never);
            assert_eq!(town.at("one@example.com"), of(ADA, "archived"));
        }
        town.moves(ADA, "two@example.com");
        assert_eq!(
            town.at("two@example.com"),
            of(ADA, "subscribed"),
            "the user is subscribed at an accepted address"
        );
        assert_eq!(town.at("one@example.com"), of("", "none"));

        // The same from a contact that existed before the user.
        town.add("three@example.com", "subscribed");
        town.moves(ADA, "three@example.com");
        town.lives(ADA, "gone@example.com");
        town.tell(MessageType::updated(&USER), ADA, "gone@example.com").unwrap_err();
        assert_eq!(town.at("two@example.com"), of(ADA, "archived"));
        assert_eq!(town.at("three@example.com"), of("", "subscribed"));
        town.moves(ADA, "two@example.com");
        assert_eq!(town.at("two@example.com"), of(ADA, "subscribed"));
    }

    #[test]
    fn who_has_unsubscribed_stays_unsubscribed_wherever_they_move() {
        let mut town = Town::start();
        town.add("two@example.com", "unsubscribed");
        town.add("three@example.com", "archived");
        town.signs_up(ADA, "one@example.com");
        town.moves(ADA, "two@example.com");
        assert_eq!(town.at("two@example.com"), of(ADA, "unsubscribed"));
        town.moves(ADA, "one@example.com");
        assert_eq!(town.at("two@example.com"), of("", "unsubscribed"));
        assert_eq!(
            town.at("one@example.com"),
            of(ADA, "subscribed"),
            "this contact's status was not set by the user"
        );
        town.moves(ADA, "two@example.com");
        town.set("two@example.com", "subscribed");
        town.moves(ADA, "one@example.com");
        town.moves(ADA, "two@example.com");
        town.set("two@example.com", "unsubscribed");
        town.moves(ADA, "one@example.com");
        assert_eq!(town.at("one@example.com"), of(ADA, "unsubscribed"), "the user unsubscribed");

        let mut town = Town::start();
        town.add("two@example.com", "subscribed");
        town.add("three@example.com", "archived");
        town.signs_up(ADA, "one@example.com");
        town.set("one@example.com", "unsubscribed");
        town.moves(ADA, "two@example.com");
        town.moves(ADA, "one@example.com");
        assert_eq!(town.at("one@example.com"), of(ADA, "unsubscribed"));
        town.moves(ADA, "three@example.com");
        assert_eq!(town.at("three@example.com"), of(ADA, "unsubscribed"));
        town.moves(ADA, "four@example.com");
        assert_eq!(town.at("four@example.com"), of(ADA, "unsubscribed"));

        for first in [ADA, BOB] {
            let mut town = Town::start();
            town.signs_up(ADA, "one@example.com");
            town.signs_up(BOB, "two@example.com");
            town.set("one@example.com", "unsubscribed");
            town.lives(ADA, "two@example.com");
            town.lives(BOB, "one@example.com");
            let mut both = [(ADA, "two@example.com"), (BOB, "one@example.com")];
            if first == BOB {
                both.reverse();
            }
            for (user, address) in both {
                town.tell(MessageType::updated(&USER), user, address).unwrap();
            }
            assert_eq!(town.at("two@example.com"), of(ADA, "unsubscribed"));
            assert_eq!(town.at("one@example.com").0, BOB);
        }
    }

    #[test]
    fn who_moves_to_an_archived_contact_is_there_as_they_were_before() {
        let mut town = Town::start();
        town.add("two@example.com", "archived");
        town.status_if_new = "transactional";
        town.signs_up(ADA, "one@example.com");
        town.moves(ADA, "two@example.com");
        assert_eq!(town.at("two@example.com"), of(ADA, "transactional"));
        assert_eq!(town.at("one@example.com"), of(ADA, "archived"));
    }

    #[test]
    fn late_news_of_an_old_user_does_not_take_the_new_ones_contact() {
        let mut town = Town::start();
        town.signs_up(ADA, "one@example.com");
        // The deletion of the first user is delayed, and another user already has the address.
        town.addresses.lock().unwrap().remove(ADA);
        town.signs_up(BOB, "one@example.com");
        for address in ["one@example.com", "ONE@example.com"] {
            town.tell(MessageType::updated(&USER), ADA, address).unwrap();
            assert_eq!(town.at("one@example.com"), of(BOB, "subscribed"));
        }
        town.is_erased(ADA);
        assert_eq!(town.at("one@example.com"), of(BOB, "subscribed"));
        town.nothing_is_left_of(ADA);
    }

    #[test]
    fn of_two_users_with_one_address_the_one_who_was_told_last_has_the_contact() {
        let mut town = Town::start();
        town.signs_up(ADA, "one@example.com");
        town.signs_up(BOB, "one@example.com");
        assert_eq!(town.at("one@example.com"), of(BOB, "subscribed"));
        town.moves(ADA, "two@example.com");
        town.is_erased(ADA);
        assert_eq!(town.at("one@example.com"), of(BOB, "subscribed"));
    }

    #[test]
    fn wherever_a_move_breaks_off_the_next_attempt_ends_it() {
        let stories: [&[(&str, &str)]; 4] = [
            // To a contact that existed before, and back.
            &[(ADA, "news@example.com"), (ADA, "one@example.com")],
            &[(ADA, "two@example.com"), (BOB, "one@example.com")],
            &[(ADA, "two@example.com"), (BOB, "three@example.com"), (EVE, "one@example.com")],
            &[(ADA, "archived@example.com"), (ADA, "news@example.com"), (ADA, "four@example.com")],
        ];
        let mut broken = 0;
        for story in stories {
            for lost in 0..30 {
                let mut town = Town::start();
                town.add("news@example.com", "subscribed");
                town.add("archived@example.com", "archived");
                for (user, address) in
                    [(ADA, "one@example.com"), (BOB, "two@example.com"), (EVE, "three@example.com")]
                {
                    town.signs_up(user, address);
                }
                for (user, address) in story {
                    town.lives(user, address);
                }
                town.state.lock().unwrap().break_after = Some(lost);
                for (user, address) in story {
                    if let Err(refusal) = town.tell(MessageType::updated(&USER), user, address) {
                        assert_eq!(refusal.again, Again::Later(None), "{refusal}");
                        broken += 1;
                        town.tell(MessageType::updated(&USER), user, address).unwrap();
                    }
                }
                town.state.lock().unwrap().break_after = None;
                let told = format!("{story:?} {lost}");
                for (user, address) in &*town.addresses.lock().unwrap() {
                    assert_eq!(town.at(address), of(user, "subscribed"), "{told}");
                    assert_eq!(town.at("news@example.com").1, "subscribed", "{told}");
                }
                town.nothing_is_burnt();
                town.is_erased(ADA);
                town.nothing_is_left_of(ADA);
            }
        }
        assert!(broken > 40, "only {broken} deliveries failed");
    }
}

mod memory {
    use super::*;

    async fn what_a_sink_remembers_lasts_and_is_its_own(world: World) {
        let of = |sink: &str, id: &str| Recipient {
            desks: Arc::new(tokio::sync::Semaphore::new(2)),
            store: Arc::clone(&world.store),
            sink: sink.to_owned(),
            clerk_id: clerk_id(id),
            address: "here".to_owned(),
            is_elsewhere: false,
        };
        world
            .sql(
                "INSERT INTO outbox_recipients (clerk_id, sink) VALUES ('user_a', 'news'), ('user_a', 'crm')",
            )
            .await;
        assert_eq!(of("news", "user_a").recall().await, Ok(None));
        of("news", "user_a").keep("c0ffee").await.unwrap();
        assert_eq!(of("news", "user_a").recall().await, Ok(Some("c0ffee".to_owned())));
        assert_eq!(of("crm", "user_a").recall().await, Ok(None));
        // A sink at another address is another system. The reference for the first address is kept until the sink returns to it.
        let there = |address: &str, is_elsewhere| Recipient {
            address: address.to_owned(),
            is_elsewhere,
            ..of("news", "user_a")
        };
        assert_eq!(there("there", true).recall().await, Ok(None));
        there("there", true).keep("f00d").await.unwrap();
        assert_eq!(there("there", true).recall().await, Ok(Some("f00d".to_owned())));
        assert_eq!(there("here", true).recall().await, Ok(Some("c0ffee".to_owned())));
        let same = there("there", false).recall().await.unwrap().unwrap();
        assert_eq!(same, "f00d c0ffee", "with the same system, both references are used");
        let stranger = of("news", "user_b").keep("c0ffee").await.unwrap_err();
        assert_eq!(stranger.again, Again::Later(None));
    }

    #[test]
    fn on_postgres() {
        world::run(world::Keeper::Postgres, what_a_sink_remembers_lasts_and_is_its_own);
    }

    #[test]
    fn on_sqlite() {
        world::run(world::Keeper::Sqlite, what_a_sink_remembers_lasts_and_is_its_own);
    }

    #[test]
    fn on_mariadb() {
        world::run(world::Keeper::Mariadb, what_a_sink_remembers_lasts_and_is_its_own);
    }

    #[test]
    fn on_mysql() {
        world::run(world::Keeper::Mysql, what_a_sink_remembers_lasts_and_is_its_own);
    }

    #[test]
    fn on_mongodb() {
        world::run(world::Keeper::Mongodb, what_a_sink_remembers_lasts_and_is_its_own);
    }
}

mod commands {
    use super::*;

    /// Run the program with this `clerk-sync.toml` in its directory.
    fn with(file: &str, test: impl FnOnce(&mut Host)) {
        let Some(mut host) = Host::with(service::Keeper::Sqlite) else { return };
        host.write("clerk-sync.toml", file);
        host.set("CRM_SECRET", SECRET);
        test(&mut host);
    }

    fn crm(url: &str) -> String {
        format!(
            "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{url}/hooks/hunter2\"\n\
             signing_secret_env = \"CRM_SECRET\"\nfields = [\"email\", \"image_url\"]\n"
        )
    }

    #[test]
    fn a_webhook_is_sent_a_marked_message() {
        let receiver = Receiver::start(|_| reply(204, ""));
        with(&crm(&receiver.url), |host| {
            let out = host.run(&["sinks", "test", "crm"]).succeeded();
            assert!(out.starts_with("crm accepted the test message in "), "{out}");
            assert!(out.contains("\nwarning: it also accepted a message with a wrong signature"), "{out}");
        });
        let request = receiver.received().remove(0);
        svix::webhooks::Webhook::new(SECRET).unwrap().verify(&request.body, &request.headers).unwrap();
        let body = request.json();
        assert_eq!((&body["type"], &body["data"]["test"]), (&json!("user.created"), &json!(true)));
        assert!(body["data"]["clerk_id"].as_str().unwrap().starts_with("user_test_"));
        let mut names: Vec<&str> = body["data"].as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["clerk_id", "created_at", "email", "image_url", "test", "updated_at"]);
    }

    #[test]
    fn the_exit_code_tells_a_refusal_from_silence_and_from_a_mistake() {
        let receiver = Receiver::start(|_| reply(422, "hunter2"));
        with(&crm(&receiver.url), |host| {
            let refused = host.run(&["sinks", "test", "crm"]);
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.stderr.contains("answered 422 Unprocessable Entity\n  → fix it"), "{refused:?}");
            assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
            let unknown = host.run(&["sinks", "test", "cmr"]);
            assert_eq!(unknown.code, Some(2), "{unknown:?}");
            assert!(unknown.stderr.contains("there is no sink \"cmr\"; known: crm"), "{unknown:?}");
            host.unset("CRM_SECRET");
            let without = host.run(&["sinks", "test", "crm"]);
            assert_eq!(without.code, Some(78), "{without:?}");
            let told =
                "clerk-sync.toml, sink \"crm\", signing_secret_env: the variable CRM_SECRET is not set";
            assert!(without.stderr.contains(told), "{without:?}");
        });
        with(&crm(&nowhere()), |host| {
            let nobody = host.run(&["sinks", "test", "crm"]);
            assert_eq!(nobody.code, Some(69), "{nobody:?}");
            assert!(
                nobody.stderr.contains("no connection, connection refused by 127.0.0.1, port ")
                    && !nobody.stderr.contains("hunter2"),
                "{nobody:?}"
            );
            assert!(nobody.stderr.contains("→ check that 127.0.0.1 runs and is reachable"), "{nobody:?}");
        });
    }

    #[test]
    fn an_operator_is_told_of_a_sink_that_is_pointed_elsewhere_and_says_that_it_is_the_same() {
        let receiver = Receiver::start(|_| reply(204, ""));
        with(&crm(&receiver.url), |host| {
            drop(host.serve());
            host.sql(
                "INSERT INTO outbox_recipients (clerk_id, sink, addresses) VALUES ('user_1', 'crm', 'f00d')",
            );
            let doctor = host.run(&["doctor"]).stdout;
            assert!(doctor.contains("it received 1 user at another address"), "{doctor}");
            let told = host.run(&["sinks", "moved", "crm", "--dry-run"]).succeeded();
            assert_eq!(told, "crm received 1 user at another address\n");
            host.run(&["sinks", "moved", "crm"]).succeeded();
            let doctor = host.run(&["doctor"]).stdout;
            assert!(!doctor.contains("at another address"), "{doctor}");
            assert_eq!(host.run(&["sinks", "moved", "cmr"]).code, Some(2));
        });
    }

    #[test]
    fn sinks_are_listed_without_their_secrets_and_without_needing_them() {
        with(&crm("https://crm.example"), |host| {
            host.unset("CRM_SECRET");
            let out = host.run(&["sinks"]).succeeded();
            for part in [
                "clerk-sync.toml names 1 sink\n",
                "crm",
                "webhook",
                "crm.example",
                "user.deleted",
                "email, image_url",
                "wrong    signing_secret_env: the variable CRM_SECRET is not set; set it, or name a file",
            ] {
                assert!(out.contains(part), "{part}: {out}");
            }
            assert!(!out.contains("hunter2"), "{out}");
        });
    }

    #[test]
    fn the_service_names_the_file_that_it_has_read_and_refuses_one_with_mistakes() {
        with(&crm("https://crm.example"), |host| {
            let service = host.serve();
            let read = service.lines().into_iter().find(|line| line["file"] == "clerk-sync.toml");
            assert_eq!(read.expect("a line")["sinks"], 1);
            drop(service);
            host.write("other.toml", "[[sink]]\nname = \"crm\"\n");
            host.set("CONFIG_FILE", "other.toml");
            host.set("PORT", "no number");
            let refused = host.run(&["serve"]);
            assert_eq!(refused.code, Some(78), "{refused:?}");
            for part in ["PORT (--port)", "other.toml, sink \"crm\", kind: not set"] {
                assert!(refused.stderr.contains(part), "{part}: {refused:?}");
            }
            host.set("CONFIG_FILE", "absent.toml");
            let absent = host.run(&["sinks"]);
            assert_eq!(absent.code, Some(78), "{absent:?}");
            assert!(
                absent.stderr.contains("CONFIG_FILE (--config): the file absent.toml cannot be read"),
                "{absent:?}"
            );
        });
    }

    #[test]
    fn samples_never_reach_a_system_that_nobody_named_on_the_command_line() {
        with("this is no configuration", |host| {
            assert_eq!(host.run(&["serve"]).code, Some(78));
            let dev = host.run(&["dev", "--once"]);
            assert_eq!(dev.code, Some(0), "{dev:?}");
        });
    }
}
