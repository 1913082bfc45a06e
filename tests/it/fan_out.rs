//! Messages to other systems by the real program: sinks that fail in every way while others do not, and a service that
//! is killed while it delivers.

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

/// Users whose news go on to the end, and those who are erased meanwhile.
const USERS: usize = 60;
const ERASED: usize = 6;

const SENDERS: usize = 4;

/// Events a second, of all senders.
const EVENTS: u64 = 200;

/// What the service promises to every request, also on a busy machine.
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
    // What is answered from here on was sent while sinks were in trouble.
    let in_trouble = Mutex::new(None);
    let senders: Vec<Sender> = thread::scope(|scope| {
        let senders = Sender::start_all(scope, &address, &ended);
        let until = Until(&ended);
        thread::sleep(trouble);
        *in_trouble.lock().unwrap() = Some(Instant::now());
        for mood in [Mood::Answers(500), Mood::Busy, Mood::Answers(410), Mood::Garbage, Mood::Hangs] {
            let (before, well) = (bad.heard().len(), good.heard().len());
            // Some more are taken before the trouble begins.
            let refused = || bad.heard()[before..].iter().filter(|heard| !heard.taken).count();
            let began = Instant::now();
            bad.set(mood);
            thread::sleep(trouble);
            patiently(&format!("{mood:?} is met"), || refused() >= 4);
            // The trouble of one sink lasts, and the other one hears the news all the same.
            patiently("the sink that is well hears of it", || good.heard().len() > well + 50);
            // A breaker that is open lets one message pass from time to time, and none for a second after `Retry-After: 1`.
            let (tried, seconds) = (refused(), usize::try_from(began.elapsed().as_secs()).unwrap());
            assert!(tried <= 5 * (seconds + 2), "{mood:?} was met {tried} times in {seconds} s");
            let then = bad.heard().len();
            bad.set(Mood::Takes);
            patiently("it is well again", || {
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
        assert!(*took < ANSWER, "Clerk waited {took:?}");
    }
    let lives: HashMap<String, usize> = senders.into_iter().flat_map(|sender| sender.lives).collect();
    for (name, fickle) in [("good", &good), ("bad", &bad), ("gone", &gone)] {
        patiently(&format!("{name} has it all"), || {
            host.count(&format!("outbox WHERE sink = '{name}' AND state = 'pending'")) == 0
        });
        assert_eq!(host.count("outbox WHERE state IN ('dead', 'discarded')"), 0);
        let heard = fickle.heard();
        assert_told(name, &heard, &lives);
        assert_eq!(state_of(&heard), stored(host), "{name}");
    }
    let late: Vec<Duration> = good.heard().iter().map(|heard| heard.late).collect();
    tell(&format!("{:?}: the sink that was well heard within {:?} (99 %)", host.keeper, percentile(late)));
    service.stop();
}

fn a_service_that_is_killed_while_it_delivers_loses_nothing_and_keeps_the_order(host: &mut Host) {
    let _alone = alone();
    let (slow, quick) = (Fickle::open(SECRET), Fickle::open(SECRET));
    slow.set(Mood::Slow);
    // The longest lease that there is.
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
    // What the last one had taken comes free after 30 s; then it has to be delivered.
    assert!(took < Duration::from_secs(45), "something was stuck for {took:?}");
    let lives: HashMap<String, usize> = senders.into_iter().flat_map(|sender| sender.lives).collect();
    for (name, fickle) in [("slow", &slow), ("quick", &quick)] {
        let heard = fickle.heard();
        assert_told(name, &heard, &lives);
        assert_eq!(state_of(&heard), stored(host), "{name}");
    }
    service.unwrap().stop();
}

/// Clerk, telling the news of some users one after another until it is stopped.
struct Sender {
    number: usize,
    /// How often each user was told of; the erased have none.
    lives: HashMap<String, usize>,
    /// When each event was answered, and how long that took.
    answers: Vec<(Instant, Duration)>,
}

impl Sender {
    /// All of them, each in a thread of its own.
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
        // Those of the first numbers are erased after a while, and never heard of again.
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
                // Somebody has killed it.
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

/// Everything was told that was to be told: signed, of each user in order, and nothing left out.
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
                // A repeat comes before anything else is said of that user.
                Some(place) => assert_eq!(place + 1, ids.len(), "{name}: {user} is told of out of order"),
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
        assert!(of_users.contains_key(user.as_str()), "{name} never heard of {user}");
    }
}

fn step_of(heard: &[&Heard], id: &str) -> String {
    let message = &heard.iter().find(|heard| heard.id == id).unwrap().message;
    match message["type"].as_str().unwrap() {
        "user.deleted" => "deleted".to_owned(),
        _ => message["data"]["first_name"].as_str().unwrap().to_owned(),
    }
}

/// What a receiver knows that drops what it has seen: of each user address and first name.
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

/// For whoever runs the test to see, also when it passes.
fn tell(line: &str) {
    _ = writeln!(io::stderr(), "{line}");
}

fn percentile(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

/// Longer than a breaker leaves a sink alone after an outage as long as these.
fn patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Duration::from_secs(load(90, 480) as u64);
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < patience, "never: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}
