//! Two Clerk instances and one database: how the second instance is refused.

use std::{collections::BTreeSet, thread};

use fake_clerk::Options;
use serde_json::Value;

use crate::{
    catching_up::Clerk,
    service::{
        Answer, Host, INSTANCE, Service, deletion, eventually, milliseconds, on_each_keeper, post, user,
    },
};

on_each_keeper!(
    the_first_event_decides_and_those_of_another_instance_are_refused_and_told,
    examples_and_samples_decide_nothing_and_are_taken_by_any_service,
    of_several_replicas_that_race_at_the_first_event_all_take_one_instance,
    a_key_decides_as_well_as_an_event_and_whoever_is_second_is_refused,
    a_service_that_runs_takes_the_new_instance_after_a_change_and_not_the_one_before,
    nobody_is_erased_after_a_change_before_that_is_allowed,
    a_key_settles_which_is_meant_where_events_of_two_come_in,
    any_takes_all_and_a_comparison_erases_nobody_by_itself,
    half_of_a_small_table_is_not_erased,
);

const OTHER: &str = "ins_2otherotherotherotherothero";

/// An event of this instance about a user with this id.
fn created(instance: &str, id: &str) -> Value {
    let mut event = user("user.created", id, milliseconds(), "Ada");
    event["instance_id"] = instance.into();
    event
}

fn send(service: &Service, event: &Value) -> Answer {
    service.post(&post(event))
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status, &*answer.word()), (403, "wrong_instance"), "{answer:?}");
}

/// Ids of the live users in the database.
fn here(host: &Host) -> BTreeSet<String> {
    host.sql("SELECT clerk_id FROM users WHERE deleted_at IS NULL").into_iter().flatten().collect()
}

/// Start a Clerk with another instance and this many users. From then on the host has its key.
fn other_clerk(host: &mut Host, users: usize) -> Clerk {
    let clerk = Clerk::start(host, Options { users, instance: OTHER.to_owned(), ..Options::default() });
    // The fake creates the same users in every instance, so they are replaced by new ones.
    for _ in 0..users {
        let users = clerk.users();
        let first = users.ids().into_iter().next().expect("a user");
        users.delete(&first).expect("an event");
        users.create();
    }
    clerk
}

/// The exit code of `doctor`, and its findings about the instance.
fn diagnosed(host: &Host) -> (Option<i32>, String) {
    let finished = host.run(&["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_str(&finished.stdout).unwrap();
    let about: Vec<String> = findings
        .iter()
        .filter(|finding| finding["check"] == "clerk instance")
        .map(|finding| format!("{} {} {}", finding["status"], finding["found"], finding["remedy"]))
        .collect();
    (finished.code, about.join("\n"))
}

fn the_first_event_decides_and_those_of_another_instance_are_refused_and_told(host: &mut Host) {
    for (processing, taken) in [("inline", "applied"), ("queue", "queued")] {
        host.set("PROCESSING", processing);
        let service = host.serve();
        let port = service.public.port().to_string();
        assert_eq!(send(&service, &created(INSTANCE, &format!("user_{processing}"))).word(), taken);
        assert_refused(&send(&service, &created(OTHER, &format!("user_other_{processing}"))));
        assert_refused(&send(&service, &deletion_of(OTHER, &format!("user_{processing}"))));
        // Events of types that are not synced are refused too; an event without an instance is accepted.
        let mut session = created(OTHER, "sess_1");
        session["type"] = "session.created".into();
        assert_refused(&send(&service, &session));
        let mut unnamed = created(OTHER, &format!("user_unnamed_{processing}"));
        unnamed.as_object_mut().unwrap().remove("instance_id");
        assert_eq!(send(&service, &unnamed).word(), taken);
        assert_eq!(send(&service, &created(INSTANCE, &format!("user_again_{processing}"))).word(), taken);

        let refusals = service.metric(r#"clerk_sync_rejections_total{reason="wrong_instance"}"#);
        assert_eq!(refusals, Some(3.0));
        let told = |line: &Value| {
            line["reason"] == "wrong_instance"
                && line["instance"] == OTHER
                && line["known_instance"] == INSTANCE
        };
        assert_eq!(service.lines().iter().filter(|line| told(line)).count(), 3, "{}", service.log());
        let explained = |line: &Value| line["level"] == "ERROR" && line["instance"] == OTHER;
        assert_eq!(service.lines().iter().filter(|line| explained(line)).count(), 1, "{}", service.log());
        host.set("PORT", &port);
        let (code, diagnosis) = diagnosed(host);
        host.set("PORT", "0");
        assert_eq!(code, Some(1), "{diagnosis}");
        assert!(diagnosis.contains(OTHER) && diagnosis.contains(INSTANCE), "{diagnosis}");
        service.stop();
    }
    let service = host.serve();
    eventually("all users", || host.count("users") == 6);
    assert!(here(host).iter().all(|id| !id.contains("other")), "{:?}", here(host));
    service.stop();
}

fn deletion_of(instance: &str, id: &str) -> Value {
    let mut event = deletion(id, milliseconds());
    event["instance_id"] = instance.into();
    event
}

fn examples_and_samples_decide_nothing_and_are_taken_by_any_service(host: &mut Host) {
    let service = host.serve();
    let url = format!("http://{}/webhooks/clerk", service.public);
    let examples = |round: &str| {
        // Events of "Send Example" have the instance id of Clerk's docs, none, or an invented one.
        for (number, id) in
            ["ins_123", "ins_2g7np7Hrk0SN6kj5EDMLDaKNL0S", "evt_user_1", ""].iter().enumerate()
        {
            let event = created(id, &format!("user_example_{round}_{number}"));
            assert_eq!(send(&service, &event).word(), "applied", "{id}");
        }
        let sent = host.run(&["send", "user.created", "--url", &url]).succeeded();
        assert!(sent.contains("applied"), "{sent}");
    };
    examples("before");
    assert_eq!(host.count("clerk_instance"), 0);
    assert_eq!(send(&service, &created(INSTANCE, "user_genuine")).word(), "applied");
    examples("after");
    assert_refused(&send(&service, &created(OTHER, "user_other")));
    assert_eq!(host.sql("SELECT instance_id FROM clerk_instance"), [[INSTANCE]]);
    service.stop();

    host.set("CLERK_INSTANCE_ID", INSTANCE);
    let service = host.serve();
    assert_eq!(send(&service, &created("ins_123", "user_example_pinned")).word(), "applied");
    assert_refused(&send(&service, &created(OTHER, "user_other")));
    service.stop();
}

fn of_several_replicas_that_race_at_the_first_event_all_take_one_instance(host: &mut Host) {
    let replicas = [host.serve(), host.serve(), host.serve()];
    let instances = ["ins_one", "ins_two", "ins_three"];
    let answers: Vec<(&str, String)> = thread::scope(|scope| {
        let senders: Vec<_> = replicas
            .iter()
            .enumerate()
            .flat_map(|(number, replica)| {
                instances.map(|instance| {
                    let event = created(instance, &format!("user_{instance}_{number}"));
                    scope.spawn(move || (instance, send(replica, &event).word()))
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    let known = host.value("SELECT instance_id FROM clerk_instance");
    for (instance, word) in answers {
        assert_eq!(word, if instance == known { "applied" } else { "wrong_instance" }, "{instance}, {known}");
    }
    let ids = here(host);
    assert!(ids.len() == 3 && ids.iter().all(|id| id.contains(&known)), "{ids:?}");
    for replica in replicas {
        replica.stop();
    }
}

fn a_key_decides_as_well_as_an_event_and_whoever_is_second_is_refused(host: &mut Host) {
    let clerk = Clerk::of(host, 3);
    host.run(&["backfill"]).succeeded();
    let service = host.serve();
    assert_refused(&send(&service, &created(OTHER, "user_other")));
    let update = clerk.users().update(&clerk.users().ids()[0]).expect("an event");
    assert_eq!(service.post(&crate::service::Post::new(update.body)).word(), "applied");
    service.stop();
    // The key belongs to another instance than the events.
    let mut fresh = Host::with(host.keeper).expect("it was there a moment ago");
    let service = fresh.serve();
    assert_eq!(send(&service, &created(OTHER, "user_other")).word(), "applied");
    let _clerk = Clerk::of(&mut fresh, 3);
    let refused = fresh.run(&["backfill"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains(OTHER) && refused.stderr.contains(INSTANCE), "{refused:?}");
    assert_eq!(fresh.count("users"), 1);
    service.stop();
}

fn a_service_that_runs_takes_the_new_instance_after_a_change_and_not_the_one_before(host: &mut Host) {
    let service = host.serve();
    assert_eq!(send(&service, &created(INSTANCE, "user_1")).word(), "applied");
    let clerk = other_clerk(host, 1);
    host.run(&["backfill", "--change-instance"]).succeeded();
    // In this order, because the second event would make the service read the instance again.
    assert_refused(&send(&service, &created(INSTANCE, "user_2")));
    assert_eq!(send(&service, &created(OTHER, "user_3")).word(), "applied");
    assert_eq!(here(host).len(), 3);
    drop(clerk);
    service.stop();
}

fn nobody_is_erased_after_a_change_before_that_is_allowed(host: &mut Host) {
    let before = Clerk::of(host, 2);
    host.run(&["backfill"]).succeeded();
    let ours: Vec<String> = before.users().ids().into_iter().collect();
    let after = other_clerk(host, 60);
    let told = host.run(&["backfill", "--change-instance"]).succeeded();
    assert!(told.contains("--allow-mass-delete"), "{told}");
    for id in &ours {
        assert!(told.contains(id), "{id} is not named: {told}");
    }
    let (_, diagnosis) = diagnosed(host);
    assert!(diagnosis.contains("warn") && diagnosis.contains(INSTANCE), "{diagnosis}");
    // Two of 62 users are neither many nor most; nevertheless, no number of runs erases them.
    for arguments in [&["reconcile", "--dry-run"][..], &["reconcile"], &["reconcile"]] {
        let withheld = host.run(arguments);
        assert_eq!(withheld.code, Some(1), "{withheld:?}");
        assert!(withheld.stderr.contains("--change-instance"), "{withheld:?}");
        for id in &ours {
            assert!(withheld.stdout.contains(id), "{withheld:?}");
        }
        assert_eq!(here(host).len(), 62);
    }
    host.run(&["reconcile", "--allow-mass-delete"]).succeeded();
    assert_eq!(here(host), after.users().ids().into_iter().collect());
    // From then on, the earlier instance has no effect.
    let one = after.users().ids()[7].clone();
    after.users().delete(&one).unwrap();
    host.run(&["reconcile"]).succeeded();
    assert_eq!(here(host).len(), 59);
    let (_, diagnosis) = diagnosed(host);
    assert!(diagnosis.starts_with("\"ok\"") && !diagnosis.contains(INSTANCE), "{diagnosis}");
}

fn a_key_settles_which_is_meant_where_events_of_two_come_in(host: &mut Host) {
    let service = host.serve();
    assert_eq!(send(&service, &created(INSTANCE, "user_first")).word(), "applied");
    let _clerk = other_clerk(host, 3);
    let refused = host.run(&["backfill"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert_refused(&send(&service, &created(OTHER, "user_other")));
    host.run(&["backfill"]).succeeded();
    assert_eq!(host.count("users"), 4);
    assert_eq!(send(&service, &created(OTHER, "user_other")).word(), "applied");
    assert_refused(&send(&service, &created(INSTANCE, "user_second")));
    // That alone erases no user, and the instance learned from the key stays.
    let withheld = host.run(&["reconcile"]);
    assert!(here(host).contains("user_first"), "{withheld:?}");
    assert_eq!(host.value("SELECT count(*) FROM clerk_instance WHERE confirmed"), "1");
    service.stop();
}

fn any_takes_all_and_a_comparison_erases_nobody_by_itself(host: &mut Host) {
    host.set("CLERK_INSTANCE_ID", "any");
    let clerk = Clerk::of(host, 20);
    host.run(&["backfill"]).succeeded();
    let service = host.serve();
    for instance in [INSTANCE, OTHER] {
        assert_eq!(send(&service, &created(instance, &format!("user_{instance}"))).word(), "applied");
    }
    service.stop();
    let withheld = host.run(&["reconcile"]);
    assert_eq!(withheld.code, Some(1), "{withheld:?}");
    assert!(withheld.stderr.contains("CLERK_INSTANCE_ID=any"), "{withheld:?}");
    assert_eq!(here(host).len(), 22);
    let (_, diagnosis) = diagnosed(host);
    assert!(diagnosis.contains("any"), "{diagnosis}");
    drop(clerk);
}

fn half_of_a_small_table_is_not_erased(host: &mut Host) {
    host.run(&["migrate"]).succeeded();
    for each in [1, 20] {
        host.sql("DELETE FROM users");
        host.sql("DELETE FROM entity_versions");
        host.sql("DELETE FROM clerk_instance");
        let clerk = Clerk::of(host, each);
        host.run(&["backfill"]).succeeded();
        // As if these users had been stored by a version that did not record the instance.
        host.sql("DELETE FROM clerk_instance");
        let theirs = other_clerk(host, each);
        host.run(&["backfill"]).succeeded();
        assert_eq!(here(host).len(), 2 * each);
        let withheld = host.run(&["reconcile"]);
        assert_eq!(withheld.code, Some(1), "{withheld:?}");
        assert!(withheld.stderr.contains("half or more of all that are here"), "{withheld:?}");
        assert_eq!(here(host).len(), 2 * each);
        host.run(&["reconcile", "--allow-mass-delete"]).succeeded();
        assert_eq!(here(host), theirs.users().ids().into_iter().collect());
        drop(clerk);
    }
}
