//! Fakes of the systems behind a sink: a server that records its requests, and what Segment and Mailchimp would make of these
//! requests according to their documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, Response, StatusCode, header},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Runtime,
    time::sleep,
};

/// A request that the server received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// User and password of HTTP basic authentication.
    fn basic(&self) -> Option<String> {
        let text = STANDARD.decode(self.header("authorization").strip_prefix("Basic ")?).ok()?;
        String::from_utf8(text).ok()
    }
}

/// What the server answers.
pub(crate) enum Reply {
    Answer(Response<Body>),
    /// No answer, permanently.
    Silence,
}

pub(crate) fn reply(status: u16, body: impl Into<Body>) -> Reply {
    Reply::Answer(Response::builder().status(status).body(body.into()).unwrap())
}

pub(crate) fn reply_with(status: u16, name: &str, value: &str) -> Reply {
    Reply::Answer(Response::builder().status(status).header(name, value).body(Body::empty()).unwrap())
}

/// A local server, and every request that it received.
pub(crate) struct Receiver {
    pub(crate) url: String,
    received: Arc<Mutex<Vec<Received>>>,
    runtime: Runtime,
}

impl Receiver {
    pub(crate) fn start(answer: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let answer = Arc::new(answer);
        let record = Arc::clone(&received);
        let routes = Router::new().fallback(move |request: Request| {
            let (answer, record) = (Arc::clone(&answer), Arc::clone(&record));
            async move {
                let (head, body) = request.into_parts();
                let one = Received {
                    method: head.method.to_string(),
                    path: head.uri.path().to_owned(),
                    headers: head.headers,
                    body: to_bytes(body, usize::MAX).await.unwrap(),
                };
                record.lock().unwrap().push(one.clone());
                match answer(&one) {
                    Reply::Answer(response) => response,
                    Reply::Silence => std::future::pending().await,
                }
            }
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum_serve(listener, routes).await });
        Self { url, received, runtime }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The only request that arrived.
    pub(crate) fn one(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.into_iter().next().unwrap()
    }

    /// Run a future to its end on the server's runtime.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// Serve HTTP/1 on every connection, because `axum::serve` is not compiled in.
pub(crate) async fn axum_serve(listener: TcpListener, routes: Router) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = hyper_util::service::TowerToHyperService::new(routes.clone());
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
        );
    }
}

/// How a [`Fickle`] treats requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Takes,
    /// It answers slowly.
    Slow,
    Answers(u16),
    /// It answers 429, with `Retry-After: 1`.
    Busy,
    /// It answers with bytes that are not HTTP.
    Garbage,
    Hangs,
}

/// A request that a [`Fickle`] received, whatever its answer.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) id: String,
    pub(crate) message: Value,
    /// Whether the signature verified on arrival.
    pub(crate) is_genuine: bool,
    pub(crate) taken: bool,
    /// The time since it happened at Clerk.
    pub(crate) late: Duration,
}

impl Heard {
    pub(crate) fn user(&self) -> &str {
        self.message["data"]["clerk_id"].as_str().unwrap()
    }
}

/// An unreliable endpoint. It writes its answers byte by byte, because they are not always HTTP.
pub(crate) struct Fickle {
    pub(crate) url: String,
    endpoint: Arc<Endpoint>,
    /// A bound socket that does not listen: it reserves the address.
    closed: Option<TcpSocket>,
    runtime: Runtime,
}

struct Endpoint {
    mood: Mutex<Mood>,
    heard: Mutex<Vec<Heard>>,
    secret: svix::webhooks::Webhook,
}

impl Fickle {
    /// Create an endpoint that refuses connections until `listen` is called.
    pub(crate) fn closed(secret: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let secret = svix::webhooks::Webhook::new(secret).unwrap();
        let endpoint = Endpoint { mood: Mutex::new(Mood::Takes), heard: Mutex::default(), secret };
        Self { url, endpoint: Arc::new(endpoint), closed: Some(socket), runtime }
    }

    pub(crate) fn open(secret: &str) -> Self {
        let mut fickle = Self::closed(secret);
        fickle.listen();
        fickle
    }

    pub(crate) fn listen(&mut self) {
        let _inside = self.runtime.enter();
        let listener = self.closed.take().unwrap().listen(1024).unwrap();
        let endpoint = Arc::clone(&self.endpoint);
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let endpoint = Arc::clone(&endpoint);
                // A sender that hangs up is ignored.
                tokio::spawn(async move { endpoint.talk(stream).await.ok() });
            }
        });
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.endpoint.mood.lock().unwrap() = mood;
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.endpoint.heard.lock().unwrap().clone()
    }
}

impl Endpoint {
    async fn talk(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut headers = HeaderMap::new();
            let mut line = String::new();
            loop {
                line.clear();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                if line.trim_end().is_empty() {
                    break;
                }
                // The request line is not a header.
                let Some((name, value)) = line.trim_end().split_once(": ") else { continue };
                let name: HeaderName = name.parse().unwrap();
                headers.insert(name, value.parse().unwrap());
            }
            let header = |name: &str| headers[name].to_str().unwrap().to_owned();
            let mut body = vec![0; header("content-length").parse().unwrap()];
            stream.read_exact(&mut body).await?;
            let mood = *self.mood.lock().unwrap();
            let message: Value = serde_json::from_slice(&body).unwrap();
            let happened: DateTime<Utc> = message["timestamp"].as_str().unwrap().parse().unwrap();
            let heard = Heard {
                id: header("webhook-id"),
                is_genuine: self.secret.verify(&body, &headers).is_ok(),
                taken: matches!(mood, Mood::Takes | Mood::Slow),
                late: (Utc::now() - happened).to_std().unwrap_or_default(),
                message,
            };
            self.heard.lock().unwrap().push(heard);
            let answer = match mood {
                Mood::Takes => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                Mood::Slow => {
                    sleep(Duration::from_millis(50)).await;
                    "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
                }
                Mood::Answers(status) => format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n"),
                Mood::Busy => "HTTP/1.1 429 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n".to_owned(),
                Mood::Garbage => "\0\u{1f4a9} 200 OK, or so\n\n\n".to_owned(),
                Mood::Hangs => pending().await,
            };
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

/// An address at which no server listens.
pub(crate) fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Segment's tracking API and its Public API, and `RudderStack`'s equivalents.
#[derive(Default)]
pub(crate) struct Segment {
    /// Traits by user.
    pub(crate) traits: BTreeMap<String, Map<String, Value>>,
    pub(crate) suppressed: BTreeSet<String>,
    /// An error that is answered before anything else.
    pub(crate) trouble: Option<(u16, Value)>,
}

impl Segment {
    pub(crate) fn answer(&mut self, request: &Received) -> Reply {
        if let Some((status, body)) = self.trouble.take() {
            return reply(status, body.to_string());
        }
        let body = request.json();
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/identify") => {
                if request.basic().as_deref() != Some("write-key:") {
                    return reply(401, "");
                }
                if request.body.len() > 32 * 1024 || body["userId"].as_str().is_none() {
                    return reply(400, "");
                }
                let user = body["userId"].as_str().unwrap_or_default().to_owned();
                if !self.suppressed.contains(&user) {
                    let traits = self.traits.entry(user).or_default();
                    for (name, value) in body["traits"].as_object().into_iter().flatten() {
                        traits.insert(name.clone(), value.clone());
                    }
                    traits.retain(|_, value| !value.is_null());
                }
                reply(200, r#"{"success":true}"#)
            }
            ("POST", "/regulations") => {
                if request.header("authorization") != "Bearer public-api-token" {
                    return reply(401, r#"{"errors":[{"type":"unauthorized","message":"not you"}]}"#);
                }
                if request.header("content-type") != "application/vnd.segment.v1+json" {
                    return reply(415, "");
                }
                let asked = (body["regulationType"].as_str(), body["subjectType"].as_str());
                let ids = body["subjectIds"].as_array().cloned().unwrap_or_default();
                if asked != (Some("SUPPRESS_WITH_DELETE"), Some("USER_ID")) || ids.is_empty() {
                    return reply(400, r#"{"errors":[{"type":"bad-request","message":"invalid"}]}"#);
                }
                for id in ids {
                    self.erase(id.as_str().unwrap());
                }
                reply(200, r#"{"data":{"regulateId":"1qJkfE1tpwvQcklImGksLN629wn"}}"#)
            }
            ("POST", "/v2/regulations") => {
                if request.header("authorization") != "Bearer public-api-token" {
                    return reply(401, "");
                }
                if body["regulationType"] != "suppress_with_delete" {
                    return reply(400, "");
                }
                for user in body["users"].as_array().unwrap() {
                    self.erase(user["userId"].as_str().unwrap());
                }
                reply(201, r#"[{"id":"b287a287-6b83-4402-902e-d2793b3e4ba4"}]"#)
            }
            _ => reply(404, ""),
        }
    }

    fn erase(&mut self, user: &str) {
        self.traits.remove(user);
        self.suppressed.insert(user.to_owned());
    }
}

/// A contact in the audience.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the names are Mailchimp's")]
pub(crate) struct Contact {
    pub(crate) contact_id: String,
    pub(crate) email: String,
    pub(crate) status: String,
    pub(crate) merge_fields: Map<String, Value>,
    pub(crate) tags: BTreeSet<String>,
}

/// Mailchimp's Marketing API with one audience, `a1b2c3d4e5`, and one key, `key-us21`.
pub(crate) struct Mailchimp {
    pub(crate) contacts: Vec<Contact>,
    /// Addresses that were permanently deleted.
    pub(crate) forgotten: BTreeSet<String>,
    pub(crate) merge_tags: Vec<&'static str>,
    /// The number of requests until one is processed and its answer is lost.
    pub(crate) break_after: Option<usize>,
    made: usize,
}

impl Default for Mailchimp {
    fn default() -> Self {
        Self {
            contacts: Vec::new(),
            forgotten: BTreeSet::new(),
            merge_tags: vec!["FNAME", "LNAME", "CLERKID"],
            break_after: None,
            made: 0,
        }
    }
}

impl Mailchimp {
    pub(crate) fn answer(&mut self, request: &Received) -> Reply {
        let answer = self.carry_out(request);
        match &mut self.break_after {
            Some(0) => {
                self.break_after = None;
                return reply(502, "");
            }
            Some(left) => *left -= 1,
            None => {}
        }
        answer
    }

    /// Add a contact that clerk-sync did not create.
    pub(crate) fn add(&mut self, email: &str) -> &mut Contact {
        self.made += 1;
        self.contacts.push(Contact {
            contact_id: format!("{:032x}", 0x00c0_ffee_0000_u64 + self.made as u64),
            email: email.to_owned(),
            status: "subscribed".to_owned(),
            merge_fields: Map::new(),
            tags: BTreeSet::new(),
        });
        self.contacts.last_mut().unwrap()
    }

    pub(crate) fn emails(&self) -> Vec<&str> {
        self.contacts.iter().map(|contact| contact.email.as_str()).collect()
    }

    /// The contacts that carry the id of this user.
    pub(crate) fn of(&self, clerk_id: &str) -> Vec<&Contact> {
        self.contacts
            .iter()
            .filter(|contact| contact.merge_fields.get("CLERKID") == Some(&json!(clerk_id)))
            .collect()
    }

    fn carry_out(&mut self, request: &Received) -> Reply {
        if request.basic().is_none_or(|pair| !pair.ends_with(":key-us21")) {
            return problem(401, "API Key Invalid", "Your API key may be invalid");
        }
        let path: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let ["3.0", "lists", "a1b2c3d4e5", rest @ ..] = path.as_slice() else {
            return problem(404, "Resource Not Found", "The requested resource could not be found.");
        };
        let body = request.json();
        match (request.method.as_str(), rest) {
            ("GET", []) => found(&json!({ "campaign_defaults": { "from_email": "news@acme.example" } })),
            ("GET", ["merge-fields"]) => {
                let fields: Vec<Value> = self.merge_tags.iter().map(|tag| json!({ "tag": tag })).collect();
                found(&json!({ "merge_fields": fields }))
            }
            ("GET", ["members", name]) => self.with(name, |contact| found(&shown(contact))),
            ("PUT", ["members", name]) => {
                let email = body["email_address"].as_str().unwrap_or_default();
                if self.place(name).is_none() {
                    if let Some(refusal) = self.refusal(email) {
                        return refusal;
                    }
                    assert_eq!(
                        *name,
                        hash(email),
                        "the path of a new contact contains the hash of its address"
                    );
                    let status = body["status_if_new"].as_str().unwrap_or_default().to_owned();
                    assert!(!status.is_empty(), "a new contact requires status_if_new");
                    self.add(email).status = status;
                }
                self.with(name, |contact| change(contact, &body))
            }
            ("PATCH", ["members", name]) => {
                let Some(place) = self.place(name) else { return missing() };
                if let Some(email) = body["email_address"].as_str() {
                    if self.place(&hash(email)).is_some_and(|other| other != place) {
                        let detail =
                            format!("\"{email}\" is already in this list with a status of \"subscribed\".");
                        return problem(400, "Invalid Resource", &detail);
                    }
                    if let Some(refusal) = self.refusal(email) {
                        return refusal;
                    }
                    email.clone_into(&mut self.contacts[place].email);
                }
                change(&mut self.contacts[place], &body)
            }
            ("DELETE", ["members", name]) => self.with(name, |contact| {
                "archived".clone_into(&mut contact.status);
                reply(204, "")
            }),
            // These two requests contain only the hash of the address.
            ("POST", ["members", name, "tags"]) => {
                let Some(place) = self.place_of_hash(name) else { return missing() };
                for tag in body["tags"].as_array().unwrap() {
                    assert_eq!(tag["status"], "active");
                    self.contacts[place].tags.insert(tag["name"].as_str().unwrap().to_owned());
                }
                reply(204, "")
            }
            ("POST", ["members", name, "actions", "delete-permanent"]) => {
                let Some(place) = self.place_of_hash(name) else { return missing() };
                let contact = self.contacts.remove(place);
                self.forgotten.insert(contact.email.to_lowercase());
                reply(204, "")
            }
            _ => problem(405, "Method Not Allowed", "The requested method and resource are not compatible."),
        }
    }

    fn refusal(&self, email: &str) -> Option<Reply> {
        if self.forgotten.contains(&email.to_lowercase()) {
            let detail = format!("{email} was permanently deleted and cannot be re-imported.");
            return Some(problem(400, "Forgotten Email Not Subscribed", &detail));
        }
        (!email.contains('@') || email.ends_with("@fake.example")).then(|| {
            problem(
                400,
                "Invalid Resource",
                &format!("{email} looks fake or invalid, please enter a real email address."),
            )
        })
    }

    fn place_of_hash(&self, name: &str) -> Option<usize> {
        self.contacts.iter().position(|contact| hash(&contact.email) == name)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.place_of_hash(name)
            .or_else(|| self.contacts.iter().position(|contact| contact.contact_id == name))
    }

    fn with(&mut self, name: &str, act: impl Fn(&mut Contact) -> Reply) -> Reply {
        self.place(name).map_or_else(missing, |place| act(&mut self.contacts[place]))
    }
}

fn change(contact: &mut Contact, body: &Value) -> Reply {
    for (tag, value) in body["merge_fields"].as_object().into_iter().flatten() {
        contact.merge_fields.insert(tag.clone(), value.clone());
    }
    if let Some(status) = body["status"].as_str() {
        status.clone_into(&mut contact.status);
    }
    found(&shown(contact))
}

fn shown(contact: &Contact) -> Value {
    json!({
        "id": hash(&contact.email), "contact_id": contact.contact_id, "email_address": contact.email,
        "status": contact.status, "merge_fields": contact.merge_fields,
    })
}

/// MD5 of the address in lower case.
pub(crate) fn hash(email: &str) -> String {
    Md5::digest(email.to_lowercase()).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn found(body: &Value) -> Reply {
    let response =
        Response::builder().status(StatusCode::OK).header(header::CONTENT_TYPE, "application/json");
    Reply::Answer(response.body(Body::from(body.to_string())).unwrap())
}

fn missing() -> Reply {
    problem(404, "Resource Not Found", "The requested resource could not be found.")
}

fn problem(status: u16, title: &str, detail: &str) -> Reply {
    let body = json!({
        "type": "https://mailchimp.com/developer/marketing/docs/errors/", "title": title, "status": status,
        "detail": detail, "instance": "995c5cb0-3280-4a6e-808b-3b096d0bb219",
    });
    let response =
        Response::builder().status(status).header(header::CONTENT_TYPE, "application/problem+json");
    Reply::Answer(response.body(Body::from(body.to_string())).unwrap())
}
