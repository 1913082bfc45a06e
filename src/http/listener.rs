//! The accept loop: connections with limits and deadlines, and a shutdown that ends.
//!
//! `axum::serve` has no deadline for heads, so it never closes slow, idle and silent peers; this loop does. The number of
//! open connections is limited, a full descriptor table pauses accepting instead of ending it, and no behaviour of a peer
//! can keep a connection open permanently.

use std::{
    cmp::Reverse,
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    extract::ConnectInfo,
    http::{HeaderValue, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Routes,
    pace::{ConnectionLimits, Pace},
    socket::Socket,
};

/// How long accepting pauses after an error that the peer did not cause, such as a full descriptor table.
const PAUSE: Duration = Duration::from_millis(100);

/// The minimum time between two equal log lines.
const SELDOM: Duration = Duration::from_secs(10);

/// The maximum number of connections that are displaced at a time.
const MAKE_WAY: usize = 32;

/// Serve `routes` until `shutdown` is cancelled. Then stop listening at once, give open requests at most `grace` to finish,
/// cut off the rest, and return.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    mut limits: ConnectionLimits,
    shutdown: CancellationToken,
    grace: Duration,
) {
    limits.farewell = limits.farewell.min(grace / 2);
    let mut http = http1::Builder::new();
    // A sender that has closed its half may still read. With this setting hyper also ignores senders that hang up, so every
    // request is completed, counted and logged.
    http.half_close(true).header_read_timeout(None).max_buf_size(limits.head_bytes);
    let mut door = Door {
        routes,
        shutdown: shutdown.clone(),
        http,
        places: Arc::new(Semaphore::new(limits.connections)),
        limits,
        connections: JoinSet::new(),
        paces: Vec::new(),
        full: Seldom::default(),
        broken: Seldom::default(),
    };
    shutdown.run_until_cancelled(door.accept(&listener)).await;
    door.close(listener);
    let mut connections = door.connections;
    let drained = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut off after the grace period");
        connections.shutdown().await;
    }
}

/// The state of the accept loop.
struct Door {
    routes: Routes,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    http: http1::Builder,
    places: Arc<Semaphore>,
    connections: JoinSet<()>,
    paces: Vec<Weak<Pace>>,
    full: Seldom,
    broken: Seldom,
}

impl Door {
    /// Accept without end.
    async fn accept(&mut self, listener: &TcpListener) {
        loop {
            while self.connections.try_join_next().is_some() {}
            let Some(place) = self.place().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => self.open(stream, peer, place),
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if self.broken.due() {
                        tracing::warn!(kind = ?error.kind(), code = error.raw_os_error(), "accepting pauses");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// A permit for one more connection.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Some(place);
            }
            if self.full.due() {
                let connections = self.limits.connections;
                tracing::warn!(connections, "all connections are in use: closing silent ones");
            }
            self.make_way();
            if let Ok(place) = timeout(PAUSE, Arc::clone(&self.places).acquire_owned()).await {
                return place.ok();
            }
        }
    }

    /// Close some of the connections that only wait for a head: those of the sender that has the most, the longest wait first.
    fn make_way(&mut self) {
        self.paces.retain(|pace| pace.strong_count() > 0);
        let open = self.paces.iter().filter_map(Weak::upgrade);
        let mut waiting: Vec<_> = open.filter_map(|pace| Some((pace.waits_since()?, pace))).collect();
        let mut of_account = HashMap::<_, usize>::new();
        for (_, pace) in &waiting {
            *of_account.entry(pace.account).or_default() += 1;
        }
        waiting.sort_by_key(|(since, pace)| (Reverse(of_account[&pace.account]), *since));
        for (_, pace) in waiting.iter().take(MAKE_WAY.min(self.limits.connections / 64).max(1)) {
            pace.displace();
        }
    }

    fn open(&mut self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        // This affects only latency.
        _ = stream.set_nodelay(true);
        let pace = Arc::new(Pace::new(&self.limits, peer.ip()));
        if self.paces.len() >= 2 * self.limits.connections {
            self.paces.retain(|pace| pace.strong_count() > 0);
        }
        self.paces.push(Arc::downgrade(&pace));
        let socket = Socket::new(stream, Arc::clone(&pace), &self.limits, self.shutdown.clone());
        let (routes, shutdown) = (self.routes.clone(), self.shutdown.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            pace.requested();
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = routes.clone().answer(request);
            let (pace, shutdown) = (Arc::clone(&pace), shutdown.clone());
            async move {
                let mut answer = answer.await;
                pace.answered();
                // A peer that keeps the connection must not send the next request to a closing socket.
                if shutdown.is_cancelled() || pace.is_displaced() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = self.http.serve_connection(TokioIo::new(socket), service);
        self.connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }

    /// Stop listening. Peers in the accept queue are connected, and may have sent a request, so they are accepted.
    fn close(&mut self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
            && let Ok((stream, peer)) = listener.accept()
        {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.open(stream, peer, place);
            }
        }
    }
}

/// Whether accepting failed because of the peer.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Remembers the time of the last log line.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= SELDOM);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
