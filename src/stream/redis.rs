//! The stream at Redis or Valkey, with a consumer group.
//!
//! Each lane appends on a connection of its own: the command that waits for the disk holds up what is behind it, and speaks only of
//! what its own connection wrote. `XADD` never trims. All workers share one consumer, because nothing is looked up by its name:
//! an entry that was taken and not finished within [`ABANDONED`] is taken again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use metrics::{counter, histogram};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    streams::{StreamAutoClaimReply, StreamId, StreamRangeReply, StreamReadReply},
};
use rustls::crypto::ring;
use secrecy::ExposeSecret;
use tokio::{sync::Mutex, time::Instant};

use super::{Depth, Durability, Entry, Key, MOST, Options, StreamError, faults};
use crate::{model::SvixId, telemetry, telemetry::TraceContext};

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
const ABANDONED: u32 = 15_000;

/// How often abandoned entries are looked for.
const LOOK_FOR_ABANDONED: Duration = Duration::from_secs(5);

/// How long the answer is good that the server can be used.
const FRESH: Duration = Duration::from_millis(250);

/// Entries that are read at once: so many of the largest bodies still find room.
const PORTION: usize = 128;

/// How often a cluster may send us on to another node.
const REDIRECTS: u32 = 5;

type Result<T> = std::result::Result<T, StreamError>;

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
    asking: Mutex<Option<MultiplexedConnection>>,
    /// What the last look brought, and when.
    looked: Mutex<Option<(Instant, Result<()>)>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({:?})", self.0.options)
    }
}

impl Stream {
    /// The stream at this place. Nothing is connected to yet.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn new(options: Options) -> Result<Self> {
        // An error says that there is one already, which is all that is needed.
        _ = ring::default_provider().install_default();
        let info = info(options.url.expose_secret()).map_err(|error| trouble(&error))?;
        Ok(Self(Arc::new(Inner { options, info, asking: Mutex::default(), looked: Mutex::default() })))
    }

    /// What appends to it.
    pub fn producer(&self) -> Producer {
        Producer { stream: self.clone(), connection: None, entries: 0 }
    }

    /// What takes entries from it.
    pub fn consumer(&self) -> Consumer {
        Consumer { stream: self.clone(), connection: None, look_at: Instant::now(), cursor: "0-0".to_owned() }
    }

    /// Write something, and learn whether it comes to the disk.
    ///
    /// # Errors
    /// If the server cannot be reached, or may lose what it has confirmed.
    pub async fn check(&self) -> Result<()> {
        let mut pipe = Pipeline::new();
        pipe.cmd("SET").arg(PROBE).arg(1).arg("EX").arg(60);
        self.0.confirm(&mut pipe);
        let mut asking = self.0.asking.lock().await;
        let replies = self.0.ask(&mut asking, &pipe).await?;
        self.0.confirmed(&replies[1..])
    }

    /// Whether the server can be reached and keeps what it has, as far as it says so without a write. It is asked at most four
    /// times a second.
    ///
    /// # Errors
    /// If not.
    pub async fn look(&self) -> Result<()> {
        let mut looked = self.0.looked.lock().await;
        match &*looked {
            Some((at, result)) if at.elapsed() < FRESH => result.clone(),
            _ => looked.insert((Instant::now(), self.look_now().await)).1.clone(),
        }
    }

    async fn look_now(&self) -> Result<()> {
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").arg("memory").cmd("INFO").arg("persistence");
        let mut asking = self.0.asking.lock().await;
        let replies = self.0.ask(&mut asking, &pipe).await?;
        if self.0.options.durability == Durability::Verify {
            keeps_all(&replies[0])?;
            let persistence = text(&replies[1])?;
            if persistence.lines().any(|line| line == "aof_enabled:0") {
                return Err(StreamError::NotDurable(faults::NO_AOF));
            }
        }
        Ok(())
    }

    /// How much is in it.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn depth(&self) -> Result<Depth> {
        let mut pipe = Pipeline::new();
        pipe.cmd("XLEN").arg(STREAM);
        pipe.cmd("XPENDING").arg(STREAM).arg(GROUP);
        pipe.cmd("XRANGE").arg(STREAM).arg("-").arg("+").arg("COUNT").arg(1);
        let mut asking = self.0.asking.lock().await;
        let mut replies = self.0.ask(&mut asking, &pipe).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil)).map_err(|error| trouble(&error));
        let entries = u64::from_redis_value(next()?).map_err(|_| misunderstood())?;
        // Before the first worker there is no group.
        let taken = match next() {
            Ok(Value::Array(summary)) => {
                summary.into_iter().next().and_then(|count| u64::from_redis_value(count).ok())
            }
            _ => None,
        };
        let first = StreamRangeReply::from_redis_value(next()?).map_err(|_| misunderstood())?;
        let appended =
            |entry: &StreamId| DateTime::from_timestamp_millis(entry.id.split('-').next()?.parse().ok()?);
        Ok(Depth { entries, taken: taken.unwrap_or_default(), oldest: first.ids.first().and_then(appended) })
    }
}

/// The replies to a pipeline.
type Replies = Vec<RedisResult<Value>>;

impl Inner {
    /// A connection to the server that has the stream.
    async fn connect(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let mut info = self.info.clone();
        for _ in 0..REDIRECTS {
            let client = Client::open(info.clone()).map_err(|error| trouble(&error))?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = connection.map_err(|error| trouble(&error))?;
            let found: RedisResult<u64> = cmd("XLEN").arg(STREAM).query_async(&mut connection).await;
            match found {
                Ok(_) => return Ok(connection),
                // A node of a cluster names the one that has the stream.
                Err(error) => match error.redirect_node().and_then(|(node, _)| moved(info.addr(), node)) {
                    Some(address) => info = info.set_addr(address),
                    None => return Err(trouble(&error)),
                },
            }
        }
        Err(StreamError::Unreachable("the nodes of the cluster send us from one to another"))
    }

    /// The replies to a pipeline, on a connection that is made where there is none. After trouble with the connection there is
    /// none again; a connection that was idle is made anew at once.
    async fn ask(&self, place: &mut Option<MultiplexedConnection>, pipe: &Pipeline) -> Result<Replies> {
        loop {
            let is_new = place.is_none();
            let mut connection = match place.take() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let mut pipe = pipe.clone();
            let replies: RedisResult<Replies> = pipe.ignore_errors().query_async(&mut connection).await;
            match replies {
                Ok(replies) => {
                    let is_elsewhere = |error: &RedisError| {
                        matches!(
                            error.kind(),
                            ErrorKind::Server(
                                ServerErrorKind::Moved
                                    | ServerErrorKind::ReadOnly
                                    | ServerErrorKind::MasterDown
                            )
                        )
                    };
                    // Another server is the master by now.
                    if replies.iter().any(|reply| reply.as_ref().is_err_and(is_elsewhere)) {
                        if !is_new {
                            continue;
                        }
                    } else {
                        *place = Some(connection);
                    }
                    return Ok(replies);
                }
                Err(error) if is_new || error.is_timeout() => return Err(trouble(&error)),
                Err(_) => {}
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
    fn confirmed(&self, replies: &[RedisResult<Value>]) -> Result<()> {
        let replicas = i64::from(self.options.replicas);
        let (on_disk, copies) = match (self.options.durability, replies) {
            (Durability::Verify, [memory, written]) => {
                keeps_all(memory)?;
                match written {
                    Ok(Value::Array(counts)) => match counts[..] {
                        [Value::Int(local), Value::Int(copies)] => (local >= 1, copies),
                        _ => return Err(misunderstood()),
                    },
                    Ok(_) => return Err(misunderstood()),
                    Err(error) => return Err(why_not(error)),
                }
            }
            (Durability::Trust, [Ok(Value::Int(copies))]) => (true, *copies),
            (Durability::Trust, []) => (true, replicas),
            (_, [.., Err(error)]) => return Err(trouble(error)),
            _ => return Err(misunderstood()),
        };
        match (on_disk, copies >= replicas) {
            (true, true) => Ok(()),
            (false, _) => Err(StreamError::NotDurable(faults::LATE)),
            (true, false) => Err(StreamError::NotDurable(faults::FEW_REPLICAS)),
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
        let inner = Arc::clone(&self.stream.0);
        if self.entries >= MOST {
            let mut length = Pipeline::new();
            length.cmd("XLEN").arg(STREAM);
            let replies = inner.ask(&mut self.connection, &length).await?;
            self.entries = count(replies.first())?;
            if self.entries >= MOST {
                return Err(StreamError::Full);
            }
        }
        let mut pipe = Pipeline::with_capacity(entries.len() + 3);
        for entry in entries {
            pipe.add_command(append(entry, &inner.options.keys)?);
        }
        pipe.cmd("XLEN").arg(STREAM);
        inner.confirm(&mut pipe);
        let began = Instant::now();
        let replies = inner.ask(&mut self.connection, &pipe).await?;
        let (appended, rest) = replies.split_at(entries.len().min(replies.len()));
        if let Some(error) = appended.iter().find_map(|reply| reply.as_ref().err()) {
            return Err(trouble(error));
        }
        self.entries = count(rest.first())?;
        inner.confirmed(&rest[1..])?;
        histogram!(telemetry::STREAM_CONFIRM_DURATION).record(began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Takes entries and finishes them, on a connection of its own.
#[derive(Debug)]
pub struct Consumer {
    stream: Stream,
    connection: Option<MultiplexedConnection>,
    /// When abandoned entries are looked for again.
    look_at: Instant,
    /// Where that look goes on.
    cursor: String,
}

impl Consumer {
    /// Take entries: at most so many, and so many bytes but for the last portion. Waits a second for the first one.
    ///
    /// # Errors
    /// If the server cannot be asked.
    pub async fn take(&mut self, most: usize, most_bytes: usize) -> Result<Vec<Entry>> {
        let mut taken = self.abandoned().await?;
        let mut bytes: usize = taken.iter().map(|entry| entry.payload.len()).sum();
        while taken.len() < most && bytes < most_bytes {
            let portion = PORTION.min(most - taken.len());
            let found = self.new_ones(portion, taken.is_empty()).await?;
            let is_last = found.len() < portion;
            let entries = self.readable(found);
            bytes += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            taken.extend(entries);
            if is_last {
                break;
            }
        }
        Ok(taken)
    }

    /// Delete entries that are finished.
    ///
    /// # Errors
    /// If that is not confirmed: they are taken again, and found to be processed.
    pub async fn finish(&mut self, ids: &[String]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut pipe = Pipeline::new();
        // Together, so that no entry stays that no worker is to finish.
        pipe.atomic();
        pipe.cmd("XACK").arg(STREAM).arg(GROUP).arg(ids);
        pipe.cmd("XDEL").arg(STREAM).arg(ids);
        let replies = self.stream.0.ask(&mut self.connection, &pipe).await?;
        replies.iter().find_map(|reply| reply.as_ref().err()).map_or(Ok(()), |error| Err(trouble(error)))
    }

    async fn new_ones(&mut self, most: usize, wait: bool) -> Result<Vec<StreamId>> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(WORKERS).arg("COUNT").arg(most);
        if wait {
            read.arg("BLOCK").arg(WAIT);
        }
        read.arg("STREAMS").arg(STREAM).arg(">");
        let reply: Option<StreamReadReply> = self.ask_group(read).await?;
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
    }

    /// Entries that a worker has taken, and never finished.
    async fn abandoned(&mut self) -> Result<Vec<Entry>> {
        if Instant::now() < self.look_at {
            return Ok(Vec::new());
        }
        let mut claim = cmd("XAUTOCLAIM");
        claim.arg(STREAM).arg(GROUP).arg(WORKERS).arg(ABANDONED).arg(&self.cursor).arg("COUNT").arg(PORTION);
        let reply: StreamAutoClaimReply = self.ask_group(claim).await?;
        self.cursor = reply.next_stream_id;
        if self.cursor == "0-0" {
            self.look_at = Instant::now() + LOOK_FOR_ABANDONED;
        }
        counter!(telemetry::STREAM_RECLAIMED).increment(reply.claimed.len() as u64);
        Ok(self.readable(reply.claimed))
    }

    /// The reply to a command about the group, which is made if it is not there.
    async fn ask_group<T: FromRedisValue>(&mut self, command: Cmd) -> Result<T> {
        let mut pipe = Pipeline::new();
        pipe.add_command(command);
        let mut is_made = false;
        loop {
            let replies = self.stream.0.ask(&mut self.connection, &pipe).await?;
            match replies.into_iter().next().ok_or_else(misunderstood)? {
                Ok(value) => return T::from_redis_value(value).map_err(|_| misunderstood()),
                Err(error) if error.code() == Some("NOGROUP") && !is_made => {
                    is_made = true;
                    let mut make = Pipeline::new();
                    make.cmd("XGROUP").arg("CREATE").arg(STREAM).arg(GROUP).arg(0).arg("MKSTREAM");
                    // Another worker may have been quicker.
                    self.stream.0.ask(&mut self.connection, &make).await?;
                }
                Err(error) => return Err(trouble(&error)),
            }
        }
    }

    /// The entries that we can read. The others stay where they are, and are looked at again after [`ABANDONED`].
    fn readable(&self, found: Vec<StreamId>) -> Vec<Entry> {
        let all = found.len();
        let keys = &self.stream.0.options.keys;
        let entries: Vec<Entry> = found.into_iter().filter_map(|found| entry(found, keys)).collect();
        if entries.len() < all {
            tracing::error!(
                entries = all - entries.len(),
                "entries of the queue cannot be read and stay in it: they are sealed with a key that QUEUE_ENCRYPTION_KEY lacks, \
                 or clerk-sync did not write them"
            );
        }
        entries
    }
}

/// What a sealed body belongs to.
fn name(svix_id: &str, received_at: i64) -> String {
    format!("{svix_id} {received_at}")
}

fn append(entry: &Entry, keys: &[Key]) -> Result<Cmd> {
    let Entry { svix_id, received_at, payload, trace, .. } = entry;
    let received_at = received_at.timestamp_millis();
    let mut append = cmd("XADD");
    append.arg(STREAM).arg("*").arg("svix_id").arg(svix_id.as_str()).arg("received_at").arg(received_at);
    match keys.first() {
        Some(key) => {
            let sealed = key.seal(&name(svix_id.as_str(), received_at), payload);
            append.arg("sealed").arg(sealed.ok_or(StreamError::Unreachable("a body cannot be sealed"))?)
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
            let name = name(svix_id.as_str(), milliseconds);
            keys.iter().find_map(|key| key.open(&name, &sealed))?
        }
        None => field("body")?,
    };
    let received_at = DateTime::from_timestamp_millis(milliseconds)?;
    Some(Entry { id: found.id, svix_id, received_at, payload: Bytes::from(payload), trace })
}

/// The address of a node, reached as the one before.
fn moved(from: &ConnectionAddr, node: &str) -> Option<ConnectionAddr> {
    let (host, port) = node.rsplit_once(':')?;
    let port = port.parse().ok()?;
    Some(match from.clone() {
        ConnectionAddr::TcpTls { host: before, insecure, tls_params, .. } => {
            let host = if host.is_empty() { before } else { host.to_owned() };
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        ConnectionAddr::Tcp(before, _) => {
            ConnectionAddr::Tcp(if host.is_empty() { before } else { host.to_owned() }, port)
        }
        _ => return None,
    })
}

/// Whether the server never evicts the stream to make room.
fn keeps_all(memory: &RedisResult<Value>) -> Result<()> {
    let Ok(memory) = text(memory) else { return Err(StreamError::NotDurable(faults::SILENT)) };
    match memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")) {
        Some("noeviction") => Ok(()),
        Some(_) => Err(StreamError::NotDurable(faults::EVICTS)),
        None => Err(StreamError::NotDurable(faults::SILENT)),
    }
}

fn text(reply: &RedisResult<Value>) -> Result<String> {
    let reply = reply.as_ref().map_err(trouble)?;
    String::from_redis_value_ref(reply).map_err(|_| misunderstood())
}

fn count(reply: Option<&RedisResult<Value>>) -> Result<u64> {
    let reply = reply.ok_or_else(misunderstood)?.as_ref().map_err(trouble)?;
    u64::from_redis_value_ref(reply).map_err(|_| misunderstood())
}

fn misunderstood() -> StreamError {
    StreamError::Unreachable("its reply cannot be understood")
}

/// Why `WAITAOF` failed. The text of the error is read and never told.
fn why_not(error: &RedisError) -> StreamError {
    let detail = error.detail().unwrap_or_default();
    if detail.contains("appendonly is disabled") {
        StreamError::NotDurable(faults::NO_AOF)
    } else if detail.contains("unknown command") {
        StreamError::NotDurable(faults::TOO_OLD)
    } else {
        trouble(error)
    }
}

fn trouble(error: &RedisError) -> StreamError {
    match error.kind() {
        _ if error.code() == Some("OOM") => StreamError::Full,
        _ if error.is_timeout() => StreamError::Unreachable("no answer in time"),
        ErrorKind::AuthenticationFailed => StreamError::Refused("WRONGPASS".to_owned()),
        ErrorKind::InvalidClientConfig => StreamError::Unreachable("the URL cannot be used"),
        _ => match error.code() {
            // Only the server says what stands there.
            Some(code) if code.bytes().all(|byte| byte.is_ascii_uppercase()) => {
                StreamError::Refused(code.to_owned())
            }
            Some(_) => StreamError::Refused("ERR".to_owned()),
            None if error.is_connection_refusal() => StreamError::Unreachable("connection refused"),
            None => StreamError::Unreachable("the connection broke"),
        },
    }
}
