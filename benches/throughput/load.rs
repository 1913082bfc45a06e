//! The sender: a frugal HTTP/1.1 client on one thread, because it shares the machine with the service that it measures. Requests
//! are prepared and signed in advance; only writing, reading and a clock remain.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Barrier,
    time::sleep_until,
};

/// How requests are sent.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Kept alive; each has at most one request in progress.
    pub(crate) connections: usize,
    /// The time between two requests, whatever their results. `None`: send as fast as answers arrive.
    pub(crate) every: Option<Duration>,
}

/// The result of a load.
pub(crate) struct Report {
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// The time from when a request was due to its answer, sorted. For a request that was late because all connections were
    /// waiting, the time also counts from when it was due.
    pub(crate) latencies: Vec<Duration>,
    /// How often each answer came: the status in the webhook's body, or of HTTP.
    pub(crate) answers: BTreeMap<String, usize>,
}

impl Report {
    pub(crate) fn percentile(&self, part: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a short list"
        )]
        let place = (self.latencies.len() as f64 * part).ceil() as usize;
        self.latencies[place.clamp(1, self.latencies.len()) - 1]
    }

    /// Fail unless every answer was `word`: only then is the measurement valid.
    pub(crate) fn all_answered(&self, word: &str) -> anyhow::Result<()> {
        if self.answers.keys().any(|answer| answer != word) {
            bail!("not every event was answered {word}: {:?}", self.answers);
        }
        Ok(())
    }
}

/// Send every request once.
pub(crate) fn drive(address: SocketAddr, requests: Vec<Vec<u8>>, load: Load) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let count = requests.len();
        let sender = Arc::new(Sender {
            requests,
            next: AtomicUsize::new(0),
            every: load.every,
            ready: Barrier::new(load.connections + 1),
            start: Barrier::new(load.connections + 1),
            began: std::sync::OnceLock::new(),
        });
        let connections: Vec<_> =
            (0..load.connections).map(|_| tokio::spawn(Arc::clone(&sender).run(address))).collect();
        sender.ready.wait().await;
        let began = *sender.began.get_or_init(Instant::now);
        sender.start.wait().await;
        let mut report = Report {
            elapsed: Duration::ZERO,
            latencies: Vec::with_capacity(count),
            answers: BTreeMap::new(),
        };
        for connection in connections {
            let (latencies, answers) = connection.await??;
            report.latencies.extend(latencies);
            for (answer, times) in answers {
                *report.answers.entry(answer).or_default() += times;
            }
        }
        report.elapsed = began.elapsed();
        report.latencies.sort_unstable();
        Ok(report)
    })
}

struct Sender {
    requests: Vec<Vec<u8>>,
    next: AtomicUsize,
    every: Option<Duration>,
    ready: Barrier,
    start: Barrier,
    began: std::sync::OnceLock<Instant>,
}

impl Sender {
    async fn run(
        self: Arc<Self>,
        address: SocketAddr,
    ) -> anyhow::Result<(Vec<Duration>, BTreeMap<String, usize>)> {
        let connected = TcpStream::connect(address).await;
        self.ready.wait().await;
        self.start.wait().await;
        let mut stream = connected.context("the service does not accept")?;
        stream.set_nodelay(true)?;
        let began = *self.began.get().expect("set before the start");
        let mut latencies = Vec::new();
        let mut answers = BTreeMap::new();
        let mut answer = Vec::with_capacity(1024);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = self.requests.get(index) else { return Ok((latencies, answers)) };
            let due = match self.every {
                Some(every) => {
                    let due = began + every * u32::try_from(index)?;
                    sleep_until(due.into()).await;
                    due
                }
                None => Instant::now(),
            };
            stream.write_all(request).await?;
            read_answer(&mut stream, &mut answer).await?;
            latencies.push(due.elapsed());
            let name = named(&answer);
            match answers.get_mut(name) {
                Some(times) => *times += 1,
                None => _ = answers.insert(name.to_owned(), 1),
            }
        }
    }
}

/// Read one answer. It needs a `content-length`, which all of clerk-sync's answers have.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    answer.clear();
    let mut wanted = None;
    loop {
        if stream.read_buf(answer).await? == 0 {
            bail!("the service closed the connection");
        }
        if wanted.is_none()
            && let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head = str::from_utf8(&answer[..end])?.to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .context("an answer without content-length")?;
            wanted = Some(end + 4 + length.trim().parse::<usize>()?);
        }
        if wanted.is_some_and(|wanted| answer.len() >= wanted) {
            return Ok(());
        }
    }
}

fn named(answer: &[u8]) -> &str {
    const STATUS: &[u8] = b"{\"status\":\"";
    let word = |from: usize, ends: &[u8]| {
        let rest = &answer[from..];
        let length = rest.iter().position(|byte| ends.contains(byte)).unwrap_or(rest.len());
        str::from_utf8(&rest[..length]).unwrap_or("?")
    };
    answer
        .windows(STATUS.len())
        .position(|window| window == STATUS)
        .map_or_else(|| word(0, b"\r\n"), |place| word(place + STATUS.len(), b"\""))
}
