//! A simulated network between a service and its database: adds a round-trip time, and counts how often the service waits.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use url::Url;

use crate::service::Place;

/// It ends with the process.
pub(crate) struct Distance {
    address: SocketAddr,
    turns: Arc<AtomicU64>,
}

impl Distance {
    /// A network between this machine and the server of this URL.
    pub(crate) fn to(url: &str, there_and_back: Duration) -> anyhow::Result<Self> {
        let url = Url::parse(url)?;
        let server =
            (url.host_str().context("the URL names no host")?.to_owned(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&turns);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect((server.0.as_str(), server.1)) else { continue };
                let ends = (near.try_clone(), far.try_clone(), near.set_nodelay(true), far.set_nodelay(true));
                let (Ok(near_again), Ok(far_again), Ok(()), Ok(())) = ends else { continue };
                let answered = Arc::new(AtomicBool::new(true));
                let (asks, counted) = (Arc::clone(&answered), Arc::clone(&counted));
                let asked = move || {
                    if asks.swap(false, Relaxed) {
                        counted.fetch_add(1, Relaxed);
                    }
                };
                carry(near, far, there_and_back / 2, asked);
                carry(far_again, near_again, there_and_back / 2, move || answered.store(true, Relaxed));
            }
        });
        Ok(Self { address, turns })
    }

    /// The same place, reached through the network.
    pub(crate) fn seen_from_here(&self, place: &Place) -> anyhow::Result<Place> {
        let mut url = Url::parse(&place.url)?;
        url.set_ip_host(self.address.ip()).ok().context("a host")?;
        url.set_port(Some(self.address.port())).ok().context("a port")?;
        Ok(Place { url: url.into(), schema: place.schema.clone() })
    }

    /// The number of round trips: how often a client sent data after the server had answered.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Relaxed)
    }
}

/// Carry data from one end to the other, each piece delayed by `takes`. A thread sleeps more precisely than the runtime's timer,
/// which counts whole milliseconds.
fn carry(mut from: TcpStream, mut to: TcpStream, takes: Duration, heard: impl Fn() + Send + 'static) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            heard();
            if sender.send((Instant::now() + takes, buffer[..bytes].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        _ = to.shutdown(Shutdown::Both);
    });
}
