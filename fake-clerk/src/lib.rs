//! A fake of Clerk's Backend API, for tests and for experiments without an account.
//!
//! It serves users, organizations, memberships and `GET /v1/instance` on this machine, with Clerk's parameters, cursor and
//! errors, to clients with its key. It misbehaves on request ([`Behaviour`]). Users are derived from numbers, so that a million
//! fit. They cover all sorts of users, including a `\u0000` in metadata that a client can write. Every change of a user also
//! produces the event that Clerk would send ([`Users`]). [`Organizations`] and memberships are derived in the same way, or
//! supplied and shown unchanged; they send no events. Tests supply all other lists, such as roles and plans ([`Lists`]).
//!
//! It never contacts Clerk, and listens only on this machine. Where Clerk's behaviour is unknown, [`Behaviour`] has a switch.
//!
//! Source: Clerk's Backend API spec 2026-05-12, and its documented errors.

mod behaviour;
mod directory;
mod id;
mod lists;
mod organization;
mod organizations;
mod query;
mod refusal;
mod shelf;
mod state;
mod user;
mod users;

use std::{
    future::pending,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::task::AbortOnDropHandle;

pub use behaviour::{Behaviour, Bursts, Canned, DeletedCursor, Script};
pub use lists::Lists;
pub use organizations::Organizations;
pub use users::{Event, Users};

use behaviour::Conduct;
use query::{Filter, OrganizationQuery, UserQuery};
use refusal::Refusal;
use shelf::Scope;
use state::{Shared, State};
use user::{Seed, User};

/// Returns the current time.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// How long accepting pauses when no file descriptors are left.
const PAUSE: Duration = Duration::from_millis(100);

/// The initial state of a fake.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of users; at most 9,999,999.
    pub users: usize,
    /// The number of organizations.
    pub organizations: usize,
    /// The number of members of each organization; at most the number of users.
    pub members: usize,
    /// The one valid secret key.
    pub key: String,
    /// The id of the key's instance.
    pub instance: String,
    /// The port on 127.0.0.1; 0 selects a free one.
    pub port: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            users: 0,
            organizations: 0,
            members: 0,
            key: "sk_test_fake".to_owned(),
            instance: "ins_2fakefakefakefakefakefakefa".to_owned(),
            port: 0,
        }
    }
}

/// A server that looks like Clerk's. Dropping it stops the server and closes every connection.
pub struct Fake {
    server: Arc<Server>,
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

/// A received request.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its headers had arrived.
    pub at: Instant,
    pub method: String,
    pub path: String,
    /// The raw query string; empty if there is none.
    pub query: String,
    /// The status of the answer; `None` until there is one.
    pub status: Option<u16>,
}

impl Fake {
    /// Start with users derived from the numbers 1 to `users`. They signed up at a growing rate over the two years before
    /// `clock`, some in the same millisecond. So did organizations and memberships. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the port is taken, or `options` asks for too many objects.
    pub async fn start(options: Options, clock: Clock) -> io::Result<Self> {
        let began = clock();
        Self::start_as_of(began, options, clock).await
    }

    /// Like [`start`](Self::start), with users that signed up before `began`: the same time always gives the same users.
    ///
    /// # Errors
    ///
    /// If the port is taken, or `options` asks for too many objects.
    pub async fn start_as_of(began: DateTime<Utc>, options: Options, clock: Clock) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
        let address = listener.local_addr()?;
        let state = Shared::new(&options, began.timestamp_millis()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "too many users, organizations or members")
        })?;
        let server = Arc::new(Server {
            key: options.key,
            users: Users::new(state.clone(), options.instance.into(), Arc::clone(&clock)),
            state,
            clock,
            conduct: Mutex::new(Conduct::new(Instant::now())),
            log: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&server)));
        Ok(Self { server, address, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// The value for `CLERK_API_URL`; paths begin with `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The one valid secret key.
    pub fn key(&self) -> &str {
        &self.server.key
    }

    /// The users, to read and to change.
    pub fn users(&self) -> Users {
        self.server.users.clone()
    }

    /// The organizations and their memberships, to read and to change.
    pub fn organizations(&self) -> Organizations {
        Organizations(self.server.state.clone())
    }

    /// The other lists, to change.
    pub fn lists(&self) -> Lists {
        Lists(self.server.state.clone())
    }

    /// Behave like this from the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.server.conduct().change(behaviour, Instant::now());
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.log().clone()
    }

    /// The number of requests to paths with this prefix.
    pub fn requests_to(&self, prefix: &str) -> usize {
        self.server.log().iter().filter(|request| request.path.starts_with(prefix)).count()
    }
}

/// Accept connections until the task is aborted, which also ends the connections.
async fn accept(listener: TcpListener, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // This only affects speed.
        _ = stream.set_nodelay(true);
        let server = Arc::clone(&server);
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { server.serve(&request).await }
        });
        connections.spawn(async move {
            // An error means that either side closed the connection; the log has the request.
            _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The state that all connections share.
struct Server {
    key: String,
    users: Users,
    state: Shared,
    clock: Clock,
    conduct: Mutex<Conduct>,
    log: Mutex<Vec<Request>>,
}

impl Server {
    /// Answer, or close the connection.
    async fn serve(&self, request: &hyper::Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let place = self.note(request);
        let behaviour = self.conduct().behaviour.clone();
        if behaviour.hang {
            pending::<()>().await;
        }
        if behaviour.down {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if !behaviour.latency.is_zero() {
            sleep(behaviour.latency).await;
        }
        let uri = request.uri();
        let canned = behaviour.script.answer(uri.path(), uri.query().unwrap_or_default());
        let (status, body, retry_after, more) = if let Some(canned) = canned {
            let status = StatusCode::from_u16(canned.status).map_err(io::Error::other)?;
            (status, canned.body, None, canned.headers)
        } else {
            match self.answer(request, place, &behaviour) {
                Ok(body) => (StatusCode::OK, body, None, Vec::new()),
                Err(refusal) => {
                    let trace_id = format!("{:032x}", u128::from(id::hash(place as u64, 31)));
                    (refusal.status, refusal.body(&trace_id), refusal.retry_after, Vec::new())
                }
            }
        };
        if let Some(noted) = self.log().get_mut(place) {
            noted.status = Some(status.as_u16());
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let date = (self.clock)().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        headers.insert(header::DATE, date.parse().map_err(io::Error::other)?);
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        for (name, value) in more {
            headers.insert(header::HeaderName::from_static(name), value.parse().map_err(io::Error::other)?);
        }
        Ok(response)
    }

    /// Route a request; returns a JSON body or the refusal.
    fn answer(
        &self,
        request: &hyper::Request<Incoming>,
        place: usize,
        behaviour: &Behaviour,
    ) -> Result<String, Refusal> {
        self.conduct().trouble(place, Instant::now())?;
        let path = request.uri().path().strip_prefix("/v1").ok_or_else(Refusal::no_such_path)?;
        self.check_key(request.headers())?;
        self.conduct().limit(Instant::now())?;
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), path.split('/').collect::<Vec<_>>().as_slice()) {
            (&Method::GET, ["", "users"]) => self.list(query, behaviour),
            (&Method::GET, ["", "users", "count"]) => self.count(query, behaviour),
            (&Method::GET, ["", "users", id]) => self.find(id),
            (&Method::GET, ["", "users", id, "organization_memberships"]) => {
                self.list_memberships(query, behaviour, |state| state.of_user(id))
            }
            (&Method::GET, ["", "organizations"]) => self.list_organizations(query, behaviour),
            (&Method::GET, ["", "organizations", id]) => self.find_organization(id, behaviour),
            (&Method::GET, ["", "organizations", id, "memberships"]) => {
                self.list_memberships(query, behaviour, |state| state.of_organization(id))
            }
            (&Method::GET, ["", "organization_memberships"]) => {
                self.list_memberships(query, behaviour, |_| Ok(Scope::All))
            }
            (&Method::GET, ["", "instance"]) => Ok(self.instance()),
            (&Method::GET, ["", "billing", ..] | ["", "users" | "organizations", _, "billing", ..])
                if behaviour.billing_off =>
            {
                Err(Refusal::billing_off())
            }
            (&Method::GET, ["", ..]) => {
                let (page, owner) = query::of_list(query)?;
                let shown = self.state.lock().shown.at(&path[1..], &page, owner.as_deref());
                shown.map(|shown| shown.to_string()).ok_or_else(|| Refusal::no_such("object", &path[1..]))
            }
            _ => Err(Refusal::no_such_path()),
        }
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let written = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = written.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(Refusal::no_key)?;
        if key == self.key { Ok(()) } else { Err(Refusal::wrong_key()) }
    }

    fn list(&self, query: &str, behaviour: &Behaviour) -> Result<String, Refusal> {
        let query = UserQuery::parse(query, behaviour.inclusive_times, !behaviour.ignore_cursor)?;
        let seeds = self.users.with(|everybody, _| {
            let mut after = None;
            if let Some(id) = &query.starting_after {
                let missing = || Refusal::missing_resource("starting_after");
                after = Some(everybody.remembered(id).ok_or_else(missing)?);
                match (everybody.get(id), behaviour.deleted_cursor) {
                    (Some(_), _) | (None, DeletedCursor::GoOn) => {}
                    (None, DeletedCursor::NotFound422) => return Err(missing()),
                    (None, DeletedCursor::EmptyPage) => return Ok(Vec::new()),
                }
            }
            Ok(everybody.page(&query, after, |seed| is_listed(seed, behaviour.only)))
        })?;
        // Serialise after releasing the lock, so that other requests do not wait.
        Ok(json_of(&seeds.iter().map(User::from).collect::<Vec<_>>()))
    }

    fn count(&self, query: &str, behaviour: &Behaviour) -> Result<String, Refusal> {
        let filter = Filter::parse(query, behaviour.inclusive_times)?;
        let only = behaviour.only.filter(|_| behaviour.count_only_listed);
        let count = self.users.with(|everybody, _| everybody.count(&filter, |seed| is_listed(seed, only)));
        Ok(json!({ "object": "total_count", "total_count": count }).to_string())
    }

    fn find(&self, id: &str) -> Result<String, Refusal> {
        let seed = self.users.with(|everybody, _| everybody.get(id));
        seed.map(|seed| json_of(&User::from(&seed))).ok_or_else(|| Refusal::no_such("user", id))
    }

    fn list_organizations(&self, query: &str, behaviour: &Behaviour) -> Result<String, Refusal> {
        let state = self.organizations(behaviour)?;
        let list = state.list_organizations(&OrganizationQuery::parse(query)?, behaviour);
        drop(state);
        Ok(list.to_string())
    }

    fn find_organization(&self, id: &str, behaviour: &Behaviour) -> Result<String, Refusal> {
        let organization = self.organizations(behaviour)?.find_organization(id);
        organization.map(|found| found.to_string()).ok_or_else(|| Refusal::no_such("organization", id))
    }

    fn list_memberships(
        &self,
        query: &str,
        behaviour: &Behaviour,
        of: impl Fn(&State) -> Result<Scope, Refusal>,
    ) -> Result<String, Refusal> {
        let state = self.organizations(behaviour)?;
        let list = state.list_memberships(of(&state)?, &OrganizationQuery::parse(query)?, behaviour);
        drop(state);
        Ok(list.to_string())
    }

    /// The state behind all requests about organizations, if the instance has them.
    fn organizations(&self, behaviour: &Behaviour) -> Result<MutexGuard<'_, State>, Refusal> {
        if behaviour.organizations_off { Err(Refusal::organizations_off()) } else { Ok(self.state.lock()) }
    }

    fn instance(&self) -> String {
        let environment = if self.key.starts_with("sk_live_") { "production" } else { "development" };
        json!({
            "object": "instance",
            "id": self.users.instance(),
            "environment_type": environment,
            "allowed_origins": null,
            "workspace_id": null,
        })
        .to_string()
    }

    /// Log a request; returns its place in the log.
    fn note(&self, request: &hyper::Request<Incoming>) -> usize {
        let mut log = self.log();
        log.push(Request {
            at: Instant::now(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            status: None,
        });
        log.len() - 1
    }

    fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.conduct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Vec<Request>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_listed(seed: &Seed, only: Option<f64>) -> bool {
    only.is_none_or(|share| seed.place() < share)
}

/// Serialisation can fail only for maps with unusual keys, which users do not have.
fn json_of(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
