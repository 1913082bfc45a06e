//! The stream in Redis or Valkey, with a consumer group.
//!
//! Each lane appends on its own connection. The command that waits for the disk blocks later commands on its
//! connection, and covers only what that connection wrote. `XADD` never trims. All workers share one consumer, because
//! nothing is looked up by its name: an entry that was taken and not acknowledged within [`IDLE`] is taken again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::DateTime;
use metrics::{counter, histogram};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, Value,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    streams::{
        StreamAutoClaimOptions, StreamAutoClaimReply, StreamId, StreamPendingReply, StreamRangeReply,
        StreamReadOptions,
    },
};
use secrecy::ExposeSecret;
use tokio::{sync::Mutex, time::Instant};

pub use super::cipher::Key;
use super::{Depth, Durability, Entry, MOST, Options, StreamError};
use crate::{
    http_client,
    model::{Delivery, SvixId},
    telemetry,
    telemetry::TraceContext,
};

/// The key of the stream. In a cluster, the part in braces determines the node of a key.
const STREAM: &str = "clerk-sync:{webhooks}";

/// Written to test whether writes reach the disk.
const PROBE: &str = "clerk-sync:{webhooks}:probe";

const GROUP: &str = "clerk-sync";
const WORKERS: &str = "workers";

const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How long the server may take to confirm that entries are on disk, in milliseconds.
const CONFIRM_WITHIN: u32 = 2_000;

/// How long a command may take, including that confirmation.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// How long a worker waits for an entry, in milliseconds. The shutdown waits for it.
const WAIT: usize = 1_000;

/// An entry that a worker has had for this long, in milliseconds, is given to another worker. If the first worker is
/// still processing it, the second finds that its webhook was processed.
const IDLE: u64 = 15_000;

/// A time longer than any entry can be idle, in milliseconds.
const DECADES: u64 = 1_000_000_000_000;

/// An id after every entry.
const LAST: &str = "18446744073709551615-0";

/// How often idle entries are looked for.
const LOOK_FOR_IDLE: Duration = Duration::from_secs(5);

/// How often the log reports entries that cannot be read.
const TELL_AGAIN: Duration = Duration::from_mins(1);

/// Entries that are read at once: 16 MiB with the largest bodies that are accepted by default.
const PORTION: usize = 16;

/// How often a cluster may redirect to another node.
const REDIRECTS: u32 = 5;

const NO_AOF: StreamError = StreamError::NotDurable(
    "its append-only file is off; set appendonly yes, or QUEUE_DURABILITY=trust if it is durable by other means",
);
const TOO_OLD: StreamError = StreamError::NotDurable(
    "it cannot confirm that an entry is on disk, which needs Redis 7.2 or Valkey 7.2; use a newer one, or set \
     QUEUE_DURABILITY=trust if it is durable by other means",
);
const EVICTS: StreamError = StreamError::NotDurable(
    "its maxmemory-policy lets it evict the stream; set maxmemory-policy noeviction, or QUEUE_DURABILITY=trust",
);
const SILENT: StreamError = StreamError::NotDurable(
    "INFO does not show its maxmemory_policy; allow the user of QUEUE_URL to run INFO, or set QUEUE_DURABILITY=trust",
);
const NOT_ON_DISK: StreamError =
    StreamError::Unconfirmed("it did not confirm within 2 s that an entry is on disk");
const FEW_REPLICAS: StreamError = StreamError::Unconfirmed(
    "fewer replicas than QUEUE_REPLICAS confirmed within 2 s that an entry is on disk; is a replica unreachable, or \
     without appendonly yes?",
);
const MISUNDERSTOOD: StreamError = StreamError::Unusable("its reply cannot be understood");

type Result<T> = std::result::Result<T, StreamError>;

/// The replies to a pipeline.
type Replies = std::vec::IntoIter<RedisResult<Value>>;

/// Whether the text is a valid URL of a stream.
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
    /// For commands that come from neither a worker nor a lane.
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Stream {
    /// The stream at this URL. No connection is made yet.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn new(options: Options) -> Result<Self> {
        http_client::use_ring();
        let info = info(options.url.expose_secret())?;
        Ok(Self(Arc::new(Inner { options, info, connection: Mutex::default() })))
    }

    /// Creates a producer, which appends webhooks.
    pub fn producer(&self) -> Producer {
        Producer { stream: self.clone(), connection: None, entries: 0 }
    }

    /// Creates a consumer, which takes entries.
    pub fn consumer(&self) -> Consumer {
        let (look_at, tell_at) = (Instant::now(), Instant::now());
        let (portion, cursor) = (PORTION, "0-0".to_owned());
        Consumer { stream: self.clone(), connection: None, portion, look_at, cursor, tell_at }
    }

    /// Write a test value, and check that it reaches the disk.
    ///
    /// # Errors
    /// If the server cannot be reached, or may lose confirmed writes.
    pub async fn check(&self) -> Result<()> {
        let mut pipe = pipeline();
        // Commands that change nothing still show whether the user has the permissions.
        pipe.xadd(STREAM, "0-0", &[("svix_id", "")]);
        pipe.add_command(read_group(LAST, 1, false)).add_command(claim(DECADES, "0-0", 1));
        pipe.xdel(STREAM, &["0-1"]).xack(STREAM, GROUP, &["0-1"]);
        measure(&mut pipe, LAST);
        let harmless = pipe.len();
        pipe.cmd("SET").arg(PROBE).arg(1).arg("EX").arg(60);
        self.0.confirm(&mut pipe);
        let mut replies = self.ask(&pipe).await?;
        for error in replies.by_ref().take(harmless).filter_map(RedisResult::err) {
            if matches!(error.code(), Some("NOPERM" | "WRONGTYPE")) {
                return Err(error.into());
            }
        }
        match read::<Value>(replies.next()) {
            // A worker must be able to empty a full server.
            Ok(_) | Err(StreamError::Full) => self.0.confirmed(replies),
            Err(error) => Err(error),
        }
    }

    /// The number of entries in the stream.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn depth(&self) -> Result<Depth> {
        let mut pipe = pipeline();
        measure(&mut pipe, "-");
        let mut replies = self.ask(&pipe).await?;
        let entries = read(replies.next())?;
        let pending: StreamPendingReply = read(replies.next())?;
        let first: StreamRangeReply = read(replies.next())?;
        let appended =
            |entry: &StreamId| DateTime::from_timestamp_millis(entry.id.split('-').next()?.parse().ok()?);
        let oldest = first.ids.first().and_then(appended);
        Ok(Depth { entries, pending: pending.count() as u64, oldest })
    }

    async fn ask(&self, pipe: &Pipeline) -> Result<Replies> {
        self.0.ask(&mut *self.0.connection.lock().await, pipe).await
    }
}

impl Inner {
    /// A connection to the server that has the stream; creates the stream and its group if needed.
    async fn connect(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let make = Cmd::xgroup_create_mkstream(STREAM, GROUP, 0);
        let mut info = self.info.clone();
        for _ in 0..REDIRECTS {
            let client = Client::open(info.clone())?;
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let Err(error) = make.exec_async(&mut connection).await else { return Ok(connection) };
            // The group exists. A full server answers OOM even then.
            if matches!(error.code(), Some("BUSYGROUP" | "OOM")) {
                return Ok(connection);
            }
            // A node of a cluster names the one that has the stream.
            let address = error.redirect_node().and_then(|(node, _)| moved(info.addr().clone(), node));
            info = info.set_addr(address.ok_or(error)?);
        }
        Err(StreamError::Unusable("the nodes of the cluster redirect too often"))
    }

    /// The replies to a pipeline, on a connection that is made if there is none. A connection that fails is dropped. If
    /// it was not new, and the failure was not a timeout, the pipeline is sent again on a new connection.
    async fn ask(&self, connection: &mut Option<MultiplexedConnection>, pipe: &Pipeline) -> Result<Replies> {
        // Another server is the master by now, or the group was deleted together with all keys.
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
                Err(error) if is_new || error.is_timeout() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Ask the server to confirm that the preceding writes are stored as required.
    fn confirm(&self, pipe: &mut Pipeline) {
        let Options { durability, replicas, .. } = self.options;
        if durability == Durability::Verify {
            pipe.cmd("INFO").arg("memory");
            pipe.cmd("WAITAOF").arg(1).arg(replicas).arg(CONFIRM_WITHIN);
        } else if replicas > 0 {
            pipe.cmd("WAIT").arg(replicas).arg(CONFIRM_WITHIN);
        }
    }

    /// Evaluate the confirmation.
    fn confirmed(&self, mut replies: Replies) -> Result<()> {
        let Options { durability, replicas, .. } = self.options;
        let (on_disk, copies): (u32, u32) = if durability == Durability::Verify {
            keeps_all(read(replies.next()))?;
            read(replies.next())?
        } else if replicas > 0 {
            (1, read(replies.next())?)
        } else {
            return Ok(());
        };
        match (on_disk >= 1, copies >= replicas) {
            (true, true) => Ok(()),
            (false, _) => Err(NOT_ON_DISK),
            (true, false) => Err(FEW_REPLICAS),
        }
    }
}

/// Appends webhooks, on its own connection.
pub struct Producer {
    stream: Stream,
    connection: Option<MultiplexedConnection>,
    /// Entries in the stream, as last reported by the server.
    entries: u64,
}

impl Producer {
    /// Append webhooks, and wait for the server's confirmation. After an error it is unknown which of them are in the
    /// stream.
    ///
    /// # Errors
    /// If they are not confirmed. Then Svix has to send them again.
    pub async fn put(&mut self, webhooks: &[Delivery]) -> Result<()> {
        if self.entries >= MOST {
            self.entries = self.stream.depth().await?.entries;
        }
        if self.entries >= MOST {
            return Err(StreamError::Full);
        }
        let server = &*self.stream.0;
        let mut pipe = pipeline();
        // In one transaction: with `appendfsync always` the server would otherwise sync after every 16 kB that it reads
        // from us.
        pipe.cmd("MULTI");
        for webhook in webhooks {
            pipe.add_command(append(webhook, &server.options.keys)?);
        }
        pipe.cmd("EXEC").xlen(STREAM);
        server.confirm(&mut pipe);
        let began = Instant::now();
        let mut replies = server.ask(&mut self.connection, &pipe).await?;
        for queued in replies.by_ref().take(webhooks.len() + 1) {
            queued?;
        }
        // If one command failed, there is no such reply.
        read::<Vec<String>>(replies.next())?;
        self.entries = read(replies.next())?;
        server.confirmed(replies)?;
        histogram!(telemetry::STREAM_CONFIRM_DURATION).record(began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Takes entries and acknowledges them, on its own connection.
pub struct Consumer {
    stream: Stream,
    connection: Option<MultiplexedConnection>,
    /// Entries that are read at once.
    portion: usize,
    /// When to look for idle entries again.
    look_at: Instant,
    /// Where that look continues.
    cursor: String,
    /// When the log may report unreadable entries again.
    tell_at: Instant,
}

impl Consumer {
    /// Take entries: at most `most`, and at most `most_bytes` except for the last portion. Waits one second for the
    /// first entry.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn take(&mut self, most: usize, most_bytes: usize) -> Result<Vec<Entry>> {
        let mut taken = self.idle().await?;
        // Includes entries that cannot be read.
        let mut found = taken.len();
        while found < most && taken.iter().map(|entry| entry.payload.len()).sum::<usize>() < most_bytes {
            // Unfinished entries must not wait for new ones.
            let wait = taken.is_empty() && self.cursor == "0-0";
            let portion = self.portion;
            let new = match self.new_ones(wait).await {
                Err(_) if !taken.is_empty() => break,
                new => new?,
            };
            let is_last = new.len() < portion;
            found += new.len();
            taken.extend(self.readable(new));
            if is_last {
                break;
            }
        }
        Ok(taken)
    }

    /// Delete entries that are finished.
    ///
    /// # Errors
    /// If that is not confirmed. The entries are taken again, and are found to be processed.
    pub async fn acknowledge(&mut self, ids: &[String]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut pipe = pipeline();
        // In this order: if an entry no longer exists, a claim removes its id from the pending entries.
        pipe.xdel(STREAM, ids).xack(STREAM, GROUP, ids);
        for reply in self.stream.0.ask(&mut self.connection, &pipe).await? {
            reply?;
        }
        Ok(())
    }

    async fn new_ones(&mut self, wait: bool) -> Result<Vec<StreamId>> {
        let reply: Option<Vec<HashMap<String, StreamRangeReply>>> =
            self.ask(read_group(">", self.portion, wait)).await?;
        Ok(reply.into_iter().flatten().flatten().flat_map(|(_, entries)| entries.ids).collect())
    }

    /// Entries that a worker has taken and did not acknowledge.
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
        // If a reply is too large for the connection, the next one must be smaller.
        self.portion = if replies.is_ok() { PORTION.min(self.portion + 1) } else { self.portion.div_ceil(2) };
        read(replies?.next())
    }

    /// Keep the entries that can be read. The others stay in the stream, and are looked at again after [`IDLE`].
    fn readable(&mut self, found: Vec<StreamId>) -> Vec<Entry> {
        let all = found.len();
        let keys = &self.stream.0.options.keys;
        let entries: Vec<Entry> = found.into_iter().filter_map(|found| entry(found, keys)).collect();
        let unreadable = all - entries.len();
        if unreadable > 0 && Instant::now() >= self.tell_at {
            self.tell_at = Instant::now() + TELL_AGAIN;
            tracing::error!(
                entries = unreadable,
                "entries of the stream cannot be read and stay in it: they are sealed with a key that QUEUE_ENCRYPTION_KEY \
                 lacks, or clerk-sync did not write them"
            );
        }
        entries
    }
}

/// A pipeline in which each command has its own reply or error.
fn pipeline() -> Pipeline {
    let mut pipe = Pipeline::new();
    pipe.ignore_errors();
    pipe
}

/// Ask for the number of entries, and for the first entry from this id on.
fn measure(pipe: &mut Pipeline, from: &str) {
    pipe.xlen(STREAM).xpending(STREAM, GROUP).xrange_count(STREAM, from, "+", 1);
}

/// Read entries of the group after this id; `>` means those that no worker has taken.
fn read_group(id: &str, most: usize, wait: bool) -> Cmd {
    let options = StreamReadOptions::default().group(GROUP, WORKERS).count(most);
    let options = if wait { options.block(WAIT) } else { options };
    Cmd::xread_options(&[STREAM], &[id], &options)
}

/// Take over entries that a worker has had for this many milliseconds.
fn claim(idle: u64, cursor: &str, most: usize) -> Cmd {
    let options = StreamAutoClaimOptions::default().count(most);
    Cmd::xautoclaim_options(STREAM, GROUP, WORKERS, idle, cursor, options)
}

fn read<T: FromRedisValue>(reply: Option<RedisResult<Value>>) -> Result<T> {
    T::from_redis_value(reply.ok_or(MISUNDERSTOOD)??).map_err(|_| MISUNDERSTOOD)
}

/// The data that is authenticated together with a sealed body.
fn associated_data(svix_id: &SvixId, received_at: i64) -> String {
    format!("{} {received_at}", svix_id.as_str())
}

fn append(webhook: &Delivery, keys: &[Key]) -> Result<Cmd> {
    let Delivery { svix_id: Some(svix_id), payload, trace, .. } = webhook else {
        return Err(StreamError::Unusable("a webhook has no id"));
    };
    let received_at = webhook.received_at.timestamp_millis();
    let mut append = cmd("XADD");
    append.arg(STREAM).arg("*").arg("svix_id").arg(svix_id.as_str()).arg("received_at").arg(received_at);
    if let Some(key) = keys.first() {
        let sealed = key.seal(&associated_data(svix_id, received_at), payload);
        append.arg("sealed").arg(sealed.ok_or(StreamError::Unusable("a body cannot be sealed"))?);
    } else {
        append.arg("body").arg(&payload[..]);
    }
    if let Some(trace) = trace.as_str() {
        append.arg("trace").arg(trace);
    }
    Ok(append)
}

fn entry(mut found: StreamId, keys: &[Key]) -> Option<Entry> {
    let svix_id = SvixId::new(found.get::<String>("svix_id")?)?;
    let received_at = found.get("received_at")?;
    let payload = match (found.map.remove("sealed"), found.map.remove("body")) {
        (Some(Value::BulkString(sealed)), _) => {
            let data = associated_data(&svix_id, received_at);
            keys.iter().find_map(|key| key.open(&data, &sealed))?
        }
        (None, Some(Value::BulkString(body))) => body,
        _ => return None,
    };
    let (trace, received_at) =
        (TraceContext::kept(found.get("trace")), DateTime::from_timestamp_millis(received_at)?);
    Some(Entry { id: found.id, svix_id, received_at, payload: payload.into(), trace })
}

/// The address of a node, with the same kind of connection as to the previous node.
fn moved(mut address: ConnectionAddr, node: &str) -> Option<ConnectionAddr> {
    let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = &mut address else {
        return None;
    };
    let (new_host, new_port) = node.rsplit_once(':')?;
    if !new_host.is_empty() {
        new_host.clone_into(host);
    }
    *port = new_port.parse().ok()?;
    Some(address)
}

/// Check that the server never evicts the stream to free memory.
fn keeps_all(memory: Result<String>) -> Result<()> {
    let memory = memory.map_err(|_| SILENT)?;
    match memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")) {
        Some("noeviction") => Ok(()),
        Some(_) => Err(EVICTS),
        None => Err(SILENT),
    }
}

/// The text of an error is inspected but never shown: it may contain values.
impl From<RedisError> for StreamError {
    fn from(error: RedisError) -> Self {
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            _ if error.is_timeout() => Self::Unreachable("no answer in time"),
            _ if error.kind() == ErrorKind::AuthenticationFailed => Self::Refused("WRONGPASS".to_owned()),
            _ if error.kind() == ErrorKind::InvalidClientConfig => Self::Unusable("the URL cannot be used"),
            Some("OOM") => Self::Full,
            Some(_) if detail.contains("appendonly is disabled") => NO_AOF,
            Some(_) if detail.contains("unknown command") => TOO_OLD,
            Some(code) if code.bytes().all(|byte| byte.is_ascii_uppercase()) => {
                Self::Refused(code.to_owned())
            }
            Some(_) => Self::Refused("ERR".to_owned()),
            None if error.is_connection_refusal() => Self::Unreachable("connection refused"),
            None => Self::Unreachable(
                "no connection, or one that breaks; check the host name, the port, and, with rediss://, that the server speaks \
                 TLS with a certificate that this machine trusts",
            ),
        }
    }
}
