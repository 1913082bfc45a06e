//! The stream at Redis or Valkey, with a consumer group.
//!
//! Each lane appends on a connection of its own: the command that waits for the disk holds up what is behind it, and speaks only of
//! what its own connection wrote. `XADD` never trims. All workers share one consumer, because nothing is looked up by its name:
//! an entry that was taken and not acknowledged within [`IDLE`] is taken again.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use metrics::{counter, histogram};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, Value,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    streams::{StreamAutoClaimReply, StreamId, StreamRangeReply, StreamReadReply},
};
use secrecy::ExposeSecret;
use tokio::{sync::Mutex, time::Instant};

use super::{Depth, Durability, Entry, Key, MOST, Options, StreamError};
use crate::{http_client, model::SvixId, telemetry, telemetry::TraceContext};

/// The stream. What is in braces decides on which node of a cluster a key is.
const STREAM: &str = "clerk-sync:{webhooks}";

/// Written to find out whether what is written comes to the disk.
const PROBE: &str = "clerk-sync:{webhooks}:probe";

const GROUP: &str = "clerk-sync";
const WORKERS: &str = "workers";

const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How long the server may take to confirm that entries are on disk, in milliseconds.
const CONFIRM_WITHIN: u32 = 2_000;

/// How long a command may take, that confirmation among them.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// How long a worker waits for an entry, in milliseconds: the shutdown waits for it.
const WAIT: u32 = 1_000;

/// An entry that a worker has had for so long is given to another one, in milliseconds. If the first one is still at work, the
/// second finds its webhook processed.
const IDLE: u64 = 15_000;

/// Longer than any entry was ever idle, in milliseconds.
const DECADES: u64 = 1_000_000_000_000;

/// Behind every entry.
const LAST: &str = "18446744073709551615-0";

/// How often idle entries are looked for.
const LOOK_FOR_IDLE: Duration = Duration::from_secs(5);

/// How long the answer is good that the server can be used.
const FRESH: Duration = Duration::from_millis(250);

/// Entries that are read at once: 16 MiB of the largest bodies that are accepted by default.
const PORTION: usize = 16;

/// How often a cluster may send us on to another node.
const REDIRECTS: u32 = 5;

const NO_AOF: StreamError = StreamError::NotDurable(
    "its append-only file is off; set appendonly yes, or QUEUE_DURABILITY=trust if it is durable by other means",
);
const TOO_OLD: StreamError = StreamError::NotDurable(
    "it cannot confirm that an entry is on disk, which takes Redis 7.2 or Valkey 7.2; use a newer one, or set \
     QUEUE_DURABILITY=trust if it is durable by other means",
);
const EVICTS: StreamError = StreamError::NotDurable(
    "its maxmemory-policy lets it evict the stream; set maxmemory-policy noeviction, or QUEUE_DURABILITY=trust",
);
const SILENT: StreamError = StreamError::NotDurable(
    "INFO does not tell its maxmemory_policy; allow the user of QUEUE_URL the command INFO, or set QUEUE_DURABILITY=trust",
);
const NOT_ON_DISK: StreamError =
    StreamError::Unconfirmed("it did not confirm within 2 s that an entry is on disk");
const FEW_REPLICAS: StreamError = StreamError::Unconfirmed(
    "fewer replicas than QUEUE_REPLICAS confirmed within 2 s that an entry is on disk; is one away, or without \
     appendonly yes?",
);
const MISUNDERSTOOD: StreamError = StreamError::Unusable("its reply cannot be understood");

type Result<T> = std::result::Result<T, StreamError>;

/// The replies to a pipeline.
type Replies = std::vec::IntoIter<RedisResult<Value>>;

/// Whether this can be where a stream is.
pub fn is_url(text: &str) -> bool {
    ["redis://", "rediss://"].iter().any(|scheme| text.starts_with(scheme)) && info(text).is_ok()
}

fn info(url: &str) -> RedisResult<ConnectionInfo> {
    Ok(url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// A stream of webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    options: Options,
    info: ConnectionInfo,
    /// For questions that no worker or lane asks.
    connection: Mutex<Option<MultiplexedConnection>>,
    /// What the last look brought, and when.
    looked: Mutex<Option<(Instant, Result<()>)>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?})", self.0.options)
    }
}

impl Stream {
    /// The stream at this place. Nothing is connected to yet.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn new(options: Options) -> Result<Self> {
        http_client::use_ring();
        let info = info(options.url.expose_secret()).map_err(|error| trouble(&error))?;
        Ok(Self(Arc::new(Inner { options, info, connection: Mutex::default(), looked: Mutex::default() })))
    }

    /// What appends to it.
    pub fn producer(&self) -> Producer {
        Producer { stream: self.clone(), connection: None, entries: 0 }
    }

    /// What takes entries from it.
    pub fn consumer(&self) -> Consumer {
        let (stream, cursor) = (self.clone(), "0-0".to_owned());
        let (portion, look_at) = (PORTION, Instant::now());
        Consumer { stream, connection: None, portion, look_at, cursor, has_unreadable: false }
    }

    /// Write something, and learn whether it comes to the disk.
    ///
    /// # Errors
    /// If the server cannot be reached, or may lose what it has confirmed.
    pub async fn check(&self) -> Result<()> {
        let mut pipe = pipeline();
        // What changes nothing tells whether it may be done.
        pipe.cmd("XADD").arg(STREAM).arg("0-0").arg("svix_id").arg("");
        pipe.add_command(read_group(LAST, 1, false)).add_command(claim(DECADES, "0-0", 1));
        pipe.cmd("XDEL").arg(STREAM).arg("0-1").cmd("XACK").arg(STREAM).arg(GROUP).arg("0-1");
        pipe.cmd("SET").arg(PROBE).arg(1).arg("EX").arg(60);
        self.0.confirm(&mut pipe);
        let mut replies = self.0.ask(&mut *self.0.connection.lock().await, &pipe).await?;
        for reply in replies.by_ref().take(5) {
            match reply {
                Err(error) if matches!(error.code(), Some("NOPERM" | "WRONGTYPE")) => {
                    return Err(trouble(&error));
                }
                _ => {}
            }
        }
        match read::<Value>(replies.next()) {
            // A worker must be able to empty a full server.
            Ok(_) | Err(StreamError::Full) => self.0.confirmed(replies),
            Err(error) => Err(error),
        }
    }

    /// The same, at most four times a second. The log tells once why the server cannot be used.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub async fn look(&self) -> Result<()> {
        let mut looked = self.0.looked.lock().await;
        if let Some((at, result)) = &*looked
            && at.elapsed() < FRESH
        {
            return result.clone();
        }
        let result = self.check().await;
        if let Err(error) = &result
            && looked.as_ref().is_none_or(|(_, before)| before.as_ref() != Err(error))
        {
            tracing::warn!(%error, "not ready");
        }
        *looked = Some((Instant::now(), result.clone()));
        result
    }

    /// How much is in it.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn depth(&self) -> Result<Depth> {
        let mut pipe = pipeline();
        pipe.cmd("XLEN").arg(STREAM);
        pipe.cmd("XRANGE").arg(STREAM).arg("-").arg("+").arg("COUNT").arg(1);
        let mut replies = self.0.ask(&mut *self.0.connection.lock().await, &pipe).await?;
        let entries = read(replies.next())?;
        let first: StreamRangeReply = read(replies.next())?;
        let appended =
            |entry: &StreamId| DateTime::from_timestamp_millis(entry.id.split('-').next()?.parse().ok()?);
        Ok(Depth { entries, oldest: first.ids.first().and_then(appended) })
    }
}

impl Inner {
    /// A connection to the server that has the stream, with its group.
    async fn connect(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let mut make = cmd("XGROUP");
        make.arg("CREATE").arg(STREAM).arg(GROUP).arg(0).arg("MKSTREAM");
        let mut info = self.info.clone();
        for _ in 0..REDIRECTS {
            let client = Client::open(info.clone()).map_err(|error| trouble(&error))?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = connection.map_err(|error| no_connection(&error))?;
            let group: RedisResult<Value> = make.query_async(&mut connection).await;
            match group {
                Ok(_) => return Ok(connection),
                // It is there. A full server says OOM even then.
                Err(error) if matches!(error.code(), Some("BUSYGROUP" | "OOM")) => return Ok(connection),
                // A node of a cluster names the one that has the stream.
                Err(error) => match error.redirect_node().and_then(|(node, _)| moved(info.addr(), node)) {
                    Some(address) => info = info.set_addr(address),
                    None => return Err(trouble(&error)),
                },
            }
        }
        Err(StreamError::Unusable("the nodes of the cluster send us from one to another"))
    }

    /// The replies to a pipeline, on a connection that is made where there is none. After trouble with the connection there is
    /// none again; one that was idle is made anew at once.
    async fn ask(&self, connection: &mut Option<MultiplexedConnection>, pipe: &Pipeline) -> Result<Replies> {
        // Another server is the master by now, or the group went with all keys.
        let is_elsewhere = |error: &RedisError| {
            matches!(error.code(), Some("MOVED" | "ASK" | "READONLY" | "MASTERDOWN" | "NOGROUP"))
        };
        loop {
            let is_new = connection.is_none();
            let mut own = match connection.take() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let replies: RedisResult<Vec<RedisResult<Value>>> = pipe.query_async(&mut own).await;
            match replies {
                Ok(replies) if !replies.iter().any(|reply| reply.as_ref().is_err_and(is_elsewhere)) => {
                    *connection = Some(own);
                    return Ok(replies.into_iter());
                }
                Ok(replies) if is_new => return Ok(replies.into_iter()),
                Err(error) if is_new || error.is_timeout() => return Err(trouble(&error)),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Have the server say, behind what is written, whether it is where it must be.
    fn confirm(&self, pipe: &mut Pipeline) {
        let replicas = self.options.replicas;
        match self.options.durability {
            Durability::Verify => {
                pipe.cmd("INFO").arg("memory");
                pipe.cmd("WAITAOF").arg(1).arg(replicas).arg(CONFIRM_WITHIN);
            }
            Durability::Trust if replicas > 0 => {
                pipe.cmd("WAIT").arg(replicas).arg(CONFIRM_WITHIN);
            }
            Durability::Trust => {}
        }
    }

    /// What it said.
    fn confirmed(&self, mut replies: Replies) -> Result<()> {
        let replicas = self.options.replicas;
        let (on_disk, copies): (u32, u32) = match self.options.durability {
            Durability::Verify => {
                keeps_all(read(replies.next()))?;
                read(replies.next())?
            }
            Durability::Trust if replicas > 0 => (1, read(replies.next())?),
            Durability::Trust => return Ok(()),
        };
        match (on_disk >= 1, copies >= replicas) {
            (true, true) => Ok(()),
            (false, _) => Err(NOT_ON_DISK),
            (true, false) => Err(FEW_REPLICAS),
        }
    }
}

/// Appends webhooks, on a connection of its own.
#[derive(Debug)]
pub struct Producer {
    stream: Stream,
    connection: Option<MultiplexedConnection>,
    /// In the stream, as far as is known.
    entries: u64,
}

impl Producer {
    /// Append webhooks, and have the server confirm them. After an error it is not known which of them are in the stream.
    ///
    /// # Errors
    /// If they are not confirmed: the sender must bring them again.
    pub async fn put(&mut self, entries: &[Entry]) -> Result<()> {
        if self.entries >= MOST {
            self.entries = self.stream.depth().await?.entries;
            if self.entries >= MOST {
                return Err(StreamError::Full);
            }
        }
        let inner = Arc::clone(&self.stream.0);
        let mut pipe = pipeline();
        // Together: with `appendfsync always` the server would else sync after every 16 kB that it reads of us.
        pipe.cmd("MULTI");
        for entry in entries {
            pipe.add_command(append(entry, &inner.options.keys)?);
        }
        pipe.cmd("EXEC").cmd("XLEN").arg(STREAM);
        inner.confirm(&mut pipe);
        let began = Instant::now();
        let mut replies = inner.ask(&mut self.connection, &pipe).await?;
        for reply in replies.by_ref().take(entries.len() + 1) {
            read::<Value>(Some(reply))?;
        }
        // An error of one of them makes this none.
        read::<Vec<String>>(replies.next())?;
        self.entries = read(replies.next())?;
        inner.confirmed(replies)?;
        histogram!(telemetry::STREAM_CONFIRM_DURATION).record(began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Takes entries and acknowledges them, on a connection of its own.
#[derive(Debug)]
pub struct Consumer {
    stream: Stream,
    connection: Option<MultiplexedConnection>,
    /// Entries that are read at once.
    portion: usize,
    /// When idle entries are looked for again.
    look_at: Instant,
    /// Where that look goes on.
    cursor: String,
    has_unreadable: bool,
}

impl Consumer {
    /// Take entries: at most so many, and so many bytes but for the last portion. Waits a second for the first one.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn take(&mut self, most: usize, most_bytes: usize) -> Result<Vec<Entry>> {
        let mut taken = self.idle().await?;
        let mut bytes: usize = taken.iter().map(|entry| entry.payload.len()).sum();
        while taken.len() < most && bytes < most_bytes {
            // What nobody finished must not wait for something new.
            let wait = taken.is_empty() && self.cursor == "0-0";
            let portion = self.portion;
            let found = match self.new_ones(wait).await {
                Err(_) if !taken.is_empty() => break,
                found => found?,
            };
            let is_last = found.len() < portion;
            let entries = self.readable(found);
            bytes += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            taken.extend(entries);
            if is_last || self.has_unreadable {
                break;
            }
        }
        Ok(taken)
    }

    /// Delete entries that are finished.
    ///
    /// # Errors
    /// If that is not confirmed: they are taken again, and found to be processed.
    pub async fn acknowledge(&mut self, ids: &[String]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut pipe = pipeline();
        // In this order: of an entry that is gone a claim takes the id from the list of those that are pending.
        pipe.cmd("XDEL").arg(STREAM).arg(ids);
        pipe.cmd("XACK").arg(STREAM).arg(GROUP).arg(ids);
        let replies = self.stream.0.ask(&mut self.connection, &pipe).await?;
        replies.into_iter().try_for_each(|reply| read::<Value>(Some(reply)).map(drop))
    }

    async fn new_ones(&mut self, wait: bool) -> Result<Vec<StreamId>> {
        let reply: Option<StreamReadReply> = self.ask(read_group(">", self.portion, wait)).await?;
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
    }

    /// Entries that a worker has taken, and did not acknowledge.
    async fn idle(&mut self) -> Result<Vec<Entry>> {
        if Instant::now() < self.look_at {
            return Ok(Vec::new());
        }
        let reply: StreamAutoClaimReply = self.ask(claim(IDLE, &self.cursor, self.portion)).await?;
        self.cursor = reply.next_stream_id;
        if self.cursor == "0-0" {
            self.look_at = Instant::now() + LOOK_FOR_IDLE;
        }
        counter!(telemetry::STREAM_RECLAIMED).increment(reply.claimed.len() as u64);
        Ok(self.readable(reply.claimed))
    }

    async fn ask<T: FromRedisValue>(&mut self, command: Cmd) -> Result<T> {
        let mut pipe = pipeline();
        pipe.add_command(command);
        let replies = self.stream.0.ask(&mut self.connection, &pipe).await;
        // A reply that is too large for the way here must become smaller.
        self.portion = if replies.is_ok() { PORTION.min(self.portion + 1) } else { self.portion.div_ceil(2) };
        read(replies?.next())
    }

    /// The entries that we can read. The others stay where they are, and are looked at again after [`IDLE`].
    fn readable(&mut self, found: Vec<StreamId>) -> Vec<Entry> {
        let all = found.len();
        let keys = &self.stream.0.options.keys;
        let entries: Vec<Entry> = found.into_iter().filter_map(|found| entry(found, keys)).collect();
        let unreadable = all - entries.len();
        if unreadable > 0 && !self.has_unreadable {
            tracing::error!(
                entries = unreadable,
                "entries of the stream cannot be read and stay in it: they are sealed with a key that QUEUE_ENCRYPTION_KEY lacks, \
                 or clerk-sync did not write them"
            );
        }
        self.has_unreadable = unreadable > 0 || (self.has_unreadable && all == 0);
        entries
    }
}

/// Commands of which each has a reply or an error of its own.
fn pipeline() -> Pipeline {
    let mut pipe = Pipeline::new();
    pipe.ignore_errors();
    pipe
}

/// Read entries of the group behind this id; `>` stands for those that no worker has taken.
fn read_group(id: &str, most: usize, wait: bool) -> Cmd {
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg(WORKERS).arg("COUNT").arg(most);
    if wait {
        read.arg("BLOCK").arg(WAIT);
    }
    read.arg("STREAMS").arg(STREAM).arg(id);
    read
}

/// Take entries over that a worker has had for so many milliseconds.
fn claim(idle: u64, cursor: &str, most: usize) -> Cmd {
    let mut claim = cmd("XAUTOCLAIM");
    claim.arg(STREAM).arg(GROUP).arg(WORKERS).arg(idle).arg(cursor).arg("COUNT").arg(most);
    claim
}

fn read<T: FromRedisValue>(reply: Option<RedisResult<Value>>) -> Result<T> {
    let value = reply.ok_or(MISUNDERSTOOD)?.map_err(|error| trouble(&error))?;
    T::from_redis_value(value).map_err(|_| MISUNDERSTOOD)
}

/// What is authenticated with a sealed body.
fn associated_data(svix_id: &str, received_at: i64) -> String {
    format!("{svix_id} {received_at}")
}

fn append(entry: &Entry, keys: &[Key]) -> Result<Cmd> {
    let Entry { svix_id, received_at, payload, trace, .. } = entry;
    let received_at = received_at.timestamp_millis();
    let mut append = cmd("XADD");
    append.arg(STREAM).arg("*").arg("svix_id").arg(svix_id.as_str()).arg("received_at").arg(received_at);
    match keys.first() {
        Some(key) => {
            let sealed = key.seal(&associated_data(svix_id.as_str(), received_at), payload);
            append.arg("sealed").arg(sealed.ok_or(StreamError::Unusable("a body cannot be sealed"))?)
        }
        None => append.arg("body").arg(&payload[..]),
    };
    if let Some(trace) = trace.as_str() {
        append.arg("trace").arg(trace);
    }
    Ok(append)
}

fn entry(found: StreamId, keys: &[Key]) -> Option<Entry> {
    let mut fields: HashMap<String, Value> = found.map;
    let mut field = |name: &str| match fields.remove(name) {
        Some(Value::BulkString(bytes)) => Some(bytes),
        _ => None,
    };
    let mut text = |name: &str| String::from_utf8(field(name)?).ok();
    let svix_id = SvixId::new(text("svix_id")?)?;
    let milliseconds: i64 = text("received_at")?.parse().ok()?;
    let trace = TraceContext::kept(text("trace"));
    let payload = match field("sealed") {
        Some(sealed) => {
            let data = associated_data(svix_id.as_str(), milliseconds);
            keys.iter().find_map(|key| key.open(&data, &sealed))?
        }
        None => field("body")?,
    };
    let received_at = DateTime::from_timestamp_millis(milliseconds)?;
    Some(Entry { id: found.id, svix_id, received_at, payload: Bytes::from(payload), trace })
}

/// The address of a node, reached as the one before.
fn moved(from: &ConnectionAddr, node: &str) -> Option<ConnectionAddr> {
    let (new_host, new_port) = node.rsplit_once(':')?;
    let mut address = from.clone();
    match &mut address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            if !new_host.is_empty() {
                new_host.clone_into(host);
            }
            *port = new_port.parse().ok()?;
        }
        _ => return None,
    }
    Some(address)
}

/// Whether the server never evicts the stream to make room.
fn keeps_all(memory: Result<String>) -> Result<()> {
    let memory = memory.map_err(|_| SILENT)?;
    match memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")) {
        Some("noeviction") => Ok(()),
        Some(_) => Err(EVICTS),
        None => Err(SILENT),
    }
}

fn no_connection(error: &RedisError) -> StreamError {
    match trouble(error) {
        StreamError::Unreachable(_) if error.is_connection_refusal() => {
            StreamError::Unreachable("connection refused")
        }
        StreamError::Unreachable(_) if !error.is_timeout() => StreamError::Unreachable(
            "no connection; check the host name, the port, and that rediss:// is for a server with TLS that this machine trusts",
        ),
        trouble => trouble,
    }
}

/// The text of an error is read, and never told: it may hold values.
fn trouble(error: &RedisError) -> StreamError {
    let detail = error.detail().unwrap_or_default();
    match error.code() {
        _ if error.is_timeout() => StreamError::Unreachable("no answer in time"),
        _ if error.kind() == ErrorKind::AuthenticationFailed => StreamError::Refused("WRONGPASS".to_owned()),
        _ if error.kind() == ErrorKind::InvalidClientConfig => {
            StreamError::Unusable("the URL cannot be used")
        }
        Some("OOM") => StreamError::Full,
        Some(_) if detail.contains("appendonly is disabled") => NO_AOF,
        Some(_) if detail.contains("unknown command") => TOO_OLD,
        Some(code) if code.bytes().all(|byte| byte.is_ascii_uppercase()) => {
            StreamError::Refused(code.to_owned())
        }
        Some(_) => StreamError::Refused("ERR".to_owned()),
        None => StreamError::Unreachable("the connection broke"),
    }
}
