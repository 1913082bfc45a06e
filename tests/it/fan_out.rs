//! Messages to other systems with the real program: sinks that fail in every way next to others that work, and a service
//! that is killed during deliveries.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use crate::{
    receivers::{Fickle, Heard, Mood},
    service::{
        Client, Host, SECRET, Service, Until, alone, deletion, load, milliseconds, on_each_keeper, post, user,
    },
};

on_each_keeper!(
    a_sink_in_any_trouble_touches_neither_the_others_nor_clerk_and_gets_everything_in_order_afterwards,
    a_service_that_is_killed_while_it_delivers_loses_nothing_and_keeps_the_order,
);

/// Users whose events continue to the end, and users that are erased meanwhile.
const USERS: usize = 60;
const ERASED: usize = 6;

const SENDERS: usize = 4;

/// Events per second, for all senders together.
const EVENTS: u64 = 200;

/// The promised limit for every answer, even on a busy machine.
const ANSWER: Duration = Duration::from_secs(10);

fn sink(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[sink]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"{url}/hooks\"\nsigning_secret_env = \"CRM_SECRET\"\n{more}\n"
    )
}

fn a_sink_in_any_trouble_touches_neither_the_others_nor_clerk_and_gets_everything_in_order_afterwards(
    host: &mut Host,
) {
    let _alone = alone();
    let trouble = Duration::from_secs(load(3, 60) as u64);
    let (good, bad, mut gone) = (Fickle::open(SECRET), Fickle::open(SECRET), Fickle::closed(SECRET));
    let file =
        [sink("good", &good.url, ""), sink("bad", &bad.url, "timeout = \"1s\""), sink("gone", &gone.url, "")];
    host.write("clerk-sync.toml", &file.concat());
    host.set("CRM_SECRET", SECRET);
    let service = host.serve();
    let address = Mutex::new(Some(service.public));
    let ended = AtomicBool::new(false);
    // Requests that are answered from here on were sent while sinks failed.
    let in_trouble = Mutex::new(None);
    let senders: Vec<Sender> = thread::scope(|scope| {
        let senders = Sender::start_all(scope, &address, &ended);
        let until = Until(&ended);
        thread::sleep(trouble);
        *in_trouble.lock().unwrap() = Some(Instant::now());
        for mood in [Mood::Answers(500), Mood::Busy, Mood::Answers(410), Mood::Garbage, Mood::Hangs] {
            let (before, well) = (bad.heard().len(), good.heard().len());
            // Some more messages may be accepted before the failures begin.
            let refused = || bad.heard()[before..].iter().filter(|heard| !heard.taken).count();
            let began = Instant::now();
            bad.set(mood);
            thread::sleep(trouble);
            patiently(&format!("the sink fails with {mood:?}"), || refused() >= 4);
            // One sink keeps failing, and the other one still receives messages.
            patiently("the working sink receives messages", || good.heard().len() > well + 50);
            // An open breaker lets one message through now and then, and none for one second after `Retry-After: 1`.
            let (tried, seconds) = (refused(), usize::try_from(began.elapsed().as_secs()).unwrap());
            assert!(tried <= 5 * (seconds + 2), "{mood:?} was tried {tried} times in {seconds} s");
            let then = bad.heard().len();
            bad.set(Mood::Takes);
            patiently("the sink works again", || {
                bad.heard()[then..].iter().filter(|heard| heard.taken).count() > 50
            });
        }
        drop(until);
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    gone.listen();

    let in_trouble = in_trouble.into_inner().unwrap().unwrap();
    let answers: Vec<_> = senders.iter().flat_map(|sender| sender.answers.iter().copied()).collect();
    let (during, before): (Vec<_>, Vec<_>) = answers.iter().partition(|(at, _)| *at >= in_trouble);
    let took = |answers: &[(Instant, Duration)]| percentile(answers.iter().map(|(_, took)| *took).collect());
    tell(&format!(
        "{:?}: {} events; answered within {:?} (99 %) before, {:?} while sinks were in trouble",
        host.keeper,
        answers.len(),
        took(&before),
        took(&during)
    ));
    for (_, took) in &answers {
        assert!(*took < ANSWER, "Clerk waited {took:?} for an answer");
    }
    let lives: HashMap<String, usize> = senders.into_iter().flat_map(|sender| sender.lives).collect();
    for (name, fickle) in [("good", &good), ("bad", &bad), ("gone", &gone)] {
        patiently(&format!("{name} has every message"), || {
            host.count(&format!("outbox WHERE sink = '{name}' AND state = 'pending'")) == 0
        });
        assert_eq!(host.count("outbox WHERE state IN ('dead', 'discarded')"), 0);
        let heard = fickle.heard();
        assert_told(name, &heard, &lives);
        assert_eq!(state_of(&heard), stored(host), "{name}");
    }
    let late: Vec<Duration> = good.heard().iter().map(|heard| heard.late).collect();
    tell(&format!(
        "{:?}: the working sink received messages within {:?} (99 %)",
        host.keeper,
        percentile(late)
    ));
    service.stop();
}

fn a_service_that_is_killed_while_it_delivers_loses_nothing_and_keeps_the_order(host: &mut Host) {
    let _alone = alone();
    let (slow, quick) = (Fickle::open(SECRET), Fickle::open(SECRET));
    slow.set(Mood::Slow);
    // The longest possible lease.
    let file =
        [sink("slow", &slow.url, "timeout = \"25s\"\nconcurrency = 16"), sink("quick", &quick.url, "")];
    host.write("clerk-sync.toml", &file.concat());
    host.set("CRM_SECRET", SECRET);
    let mut service = Some(host.serve());
    let address = Mutex::new(service.as_ref().map(|service: &Service| service.public));
    let ended = AtomicBool::new(false);
    let senders: Vec<Sender> = thread::scope(|scope| {
        let senders = Sender::start_all(scope, &address, &ended);
        let _until = Until(&ended);
        for _ in 0..load(5, 20) {
            let before = (slow.heard().len(), quick.heard().len());
            patiently("more is delivered", || {
                slow.heard().len() > before.0 + 20 && quick.heard().len() > before.1 + 50
            });
            *address.lock().unwrap() = None;
            service.take().unwrap().kill();
            let started = host.serve();
            *address.lock().unwrap() = Some(started.public);
            service = Some(started);
        }
        ended.store(true, SeqCst);
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    slow.set(Mood::Takes);
    let began = Instant::now();
    patiently("everything is delivered", || host.count("outbox WHERE state = 'pending'") == 0);
    let took = began.elapsed();
    tell(&format!("{:?}: the rest was delivered after {took:?}", host.keeper));
    // Messages that the killed process had claimed become free after 30 s, and are then delivered.
    assert!(took < Duration::from_secs(45), "messages were stuck for {took:?}");
    let lives: HashMap<String, usize> = senders.into_iter().flat_map(|sender| sender.lives).collect();
    for (name, fickle) in [("slow", &slow), ("quick", &quick)] {
        let heard = fickle.heard();
        assert_told(name, &heard, &lives);
        assert_eq!(state_of(&heard), stored(host), "{name}");
    }
    service.unwrap().stop();
}

/// A sender in Clerk's place, which sends events about some users one after another until it is stopped.
struct Sender {
    number: usize,
    /// The number of events of each user; erased users have none.
    lives: HashMap<String, usize>,
    /// The time of each answer, and how long it took.
    answers: Vec<(Instant, Duration)>,
}

impl Sender {
    /// Start all senders, each in its own thread.
    fn start_all<'scope>(
        scope: &'scope Scope<'scope, '_>,
        address: &'scope Mutex<Option<SocketAddr>>,
        ended: &'scope AtomicBool,
    ) -> Vec<ScopedJoinHandle<'scope, Self>> {
        (0..SENDERS).map(|number| scope.spawn(move || Self::new(number).run(address, ended))).collect()
    }

    fn new(number: usize) -> Self {
        Self { number, lives: HashMap::new(), answers: Vec::new() }
    }

    fn run(mut self, address: &Mutex<Option<SocketAddr>>, ended: &AtomicBool) -> Self {
        let pause = Duration::from_millis(1000 * SENDERS as u64 / EVENTS);
        let users: Vec<String> =
            (self.number..USERS).step_by(SENDERS).map(|number| format!("user_{number:03}")).collect();
        let mut client = None;
        let mut next = Instant::now();
        for step in 0.. {
            for user in &users {
                if ended.load(SeqCst) {
                    return self;
                }
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next = Instant::now() + pause;
                self.tell(user, step, address, &mut client);
            }
        }
        self
    }

    fn tell(
        &mut self,
        id: &str,
        step: usize,
        address: &Mutex<Option<SocketAddr>>,
        client: &mut Option<Client>,
    ) {
        // Users with the first numbers are erased after a while, and get no further events.
        let is_erased = id < format!("user_{ERASED:03}").as_str();
        let event = match step {
            0 => user("user.created", id, milliseconds(), "0"),
            10 if is_erased => {
                self.lives.remove(id);
                deletion(id, milliseconds())
            }
            11.. if is_erased => return,
            step => user("user.updated", id, milliseconds(), &step.to_string()),
        };
        let mut post = post(&event);
        loop {
            if client.is_none() {
                *client = address.lock().unwrap().and_then(|address| Client::connect(address).ok());
            }
            let Some(connection) = client else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            post.timestamp = milliseconds() / 1000;
            let asked = Instant::now();
            match connection.post(&post) {
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    self.answers.push((Instant::now(), asked.elapsed()));
                    break;
                }
                // The service was killed.
                Err(_) if address.lock().unwrap().is_none() || connection.is_closed_within(ANSWER) => {
                    *client = None;
                }
                Err(error) => panic!("no answer: {error}"),
            }
        }
        if !(is_erased && step >= 10) {
            self.lives.insert(id.to_owned(), step);
        }
    }
}

/// Assert that every message arrived: signed, in order for each user, and without gaps.
fn assert_told(name: &str, heard: &[Heard], lives: &HashMap<String, usize>) {
    let mut of_users: BTreeMap<&str, Vec<&Heard>> = BTreeMap::new();
    for heard in heard {
        assert!(heard.is_genuine, "{name}: {} does not verify", heard.message);
        of_users.entry(heard.user()).or_default().push(heard);
    }
    for (user, heard) in &of_users {
        let mut ids: Vec<&str> = Vec::new();
        for heard in heard {
            match ids.iter().position(|id| *id == heard.id) {
                // A repeat arrives before the user's next message.
                Some(place) => {
                    assert_eq!(place + 1, ids.len(), "{name}: messages about {user} are out of order");
                }
                None => ids.push(&heard.id),
            }
        }
        let mut taken: Vec<&str> = Vec::new();
        for heard in heard.iter().filter(|heard| heard.taken) {
            if taken.last() != Some(&heard.id.as_str()) {
                taken.push(&heard.id);
            }
        }
        let steps: Vec<String> = taken.iter().map(|id| step_of(heard, id)).collect();
        if let Some(last) = lives.get(*user) {
            let all: Vec<String> = (0..=*last).map(|step| step.to_string()).collect();
            assert_eq!(steps, all, "{name}: {user}");
            assert_eq!(ids, taken, "{name}: {user}");
        } else {
            assert_eq!(steps.last().map(String::as_str), Some("deleted"), "{name}: {user}");
            assert!(steps.iter().rev().skip(1).all(|step| step != "deleted"), "{name}: {user}: {steps:?}");
        }
    }
    for user in lives.keys() {
        assert!(of_users.contains_key(user.as_str()), "{name} received no message about {user}");
    }
}

fn step_of(heard: &[&Heard], id: &str) -> String {
    let message = &heard.iter().find(|heard| heard.id == id).unwrap().message;
    match message["type"].as_str().unwrap() {
        "user.deleted" => "deleted".to_owned(),
        _ => message["data"]["first_name"].as_str().unwrap().to_owned(),
    }
}

/// The state of a receiver that drops repeats: address and first name of each user.
fn state_of(heard: &[Heard]) -> BTreeMap<String, (String, String)> {
    let mut seen = HashSet::new();
    let mut known = BTreeMap::new();
    for heard in heard.iter().filter(|heard| heard.taken) {
        if !seen.insert(&heard.id) {
            continue;
        }
        if heard.message["type"] == "user.deleted" {
            known.remove(heard.user());
        } else {
            let text = |name: &str| heard.message["data"][name].as_str().unwrap().to_owned();
            known.insert(heard.user().to_owned(), (text("email"), text("first_name")));
        }
    }
    known
}

fn stored(host: &Host) -> BTreeMap<String, (String, String)> {
    let rows = host.sql("SELECT clerk_id, email, first_name FROM users");
    rows.into_iter().map(|row| (row[0].clone(), (row[1].clone(), row[2].clone()))).collect()
}

/// Print a line that is visible even if the test passes.
fn tell(line: &str) {
    _ = writeln!(io::stderr(), "{line}");
}

fn percentile(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

/// Wait for a condition, longer than a breaker pauses a sink after outages of this length.
fn patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Duration::from_secs(load(90, 480) as u64);
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < patience, "timed out waiting: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}
