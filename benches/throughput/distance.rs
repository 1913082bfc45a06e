//! A network between a service and its database: so many milliseconds there and back, and a count of how often the service waits.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use url::Url;

use crate::service::Place;

/// It ends when it is dropped.
pub(crate) struct Distance {
    address: SocketAddr,
    turns: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Distance {
    /// Between here and the server of this URL.
    pub(crate) async fn to(url: &str, there_and_back: Duration) -> anyhow::Result<Self> {
        let url = Url::parse(url)?;
        let server =
            (url.host_str().context("the URL names no host")?.to_owned(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&turns);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect((server.0.as_str(), server.1)).await else { continue };
                if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                    continue;
                }
                let (near, far) = (near.into_split(), far.into_split());
                let answered = Arc::new(AtomicBool::new(true));
                let (asks, counted) = (Arc::clone(&answered), Arc::clone(&counted));
                let asked = move || {
                    if asks.swap(false, Relaxed) {
                        counted.fetch_add(1, Relaxed);
                    }
                };
                carry(near.0, far.1, there_and_back / 2, asked);
                carry(far.0, near.1, there_and_back / 2, move || answered.store(true, Relaxed));
            }
        });
        Ok(Self { address, turns, task: task.abort_handle() })
    }

    /// The same place, seen from here.
    pub(crate) fn seen_from_here(&self, place: &Place) -> anyhow::Result<Place> {
        let mut url = Url::parse(&place.url)?;
        url.set_ip_host(self.address.ip()).ok().context("a host")?;
        url.set_port(Some(self.address.port())).ok().context("a port")?;
        Ok(Place { url: url.into(), schema: place.schema.clone() })
    }

    /// How often somebody spoke to the server after it had answered.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Relaxed)
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carry what is read from one end to the other, each piece so long after it came.
fn carry(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    takes: Duration,
    heard: impl Fn() + Send + 'static,
) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            heard();
            if sender.send((Instant::now() + takes, buffer[..bytes].to_vec())).is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
}
