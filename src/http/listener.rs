//! The accept loop: connections under limits and deadlines, and a shutdown that ends.
//!
//! `axum::serve` has no deadline for heads, so that slow, idle and silent peers are never closed; here they are. No
//! more than a set number of connections is open, a full descriptor table pauses accepting instead of ending it, and
//! nothing that a peer does or leaves undone holds a connection for ever.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::extract::ConnectInfo;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Routes, head, socket::Socket};

/// How long accepting pauses after an error that is not the peer's, such as a full descriptor table.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the same complaint is logged.
const SELDOM: Duration = Duration::from_secs(10);

/// What a listener grants its peers.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Open at the same time; more wait to be accepted.
    pub connections: usize,
    /// For a whole head, and for an idle connection to send the next one.
    pub head_within: Duration,
    /// The size of a head that hyper reads, in bytes; at least 8,192.
    pub head_bytes: usize,
    /// How long a peer may leave an answer unread.
    pub write_within: Duration,
    /// How long the rest of a refused request is read and thrown away, so that the peer sees the answer.
    pub linger: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head_within: Duration::from_secs(5),
            head_bytes: 2 * head::MAX_BYTES,
            write_within: Duration::from_secs(10),
            linger: Duration::from_secs(2),
        }
    }
}

/// Serve `routes` until `shutdown` is cancelled. Then stop listening at once, let requests in flight finish for at
/// most `grace`, cut off the rest, and return.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let mut connections = JoinSet::new();
    let accepting = accept(listener, routes, limits, &shutdown, &mut connections);
    shutdown.run_until_cancelled(accepting).await;
    // Dropped by now: the listener, and with it whoever was not yet accepted.
    let drained = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(connections = connections.len(), "cut off after the grace period");
        connections.shutdown().await;
    }
}

/// Accept for ever.
async fn accept(
    listener: TcpListener,
    routes: Routes,
    limits: ConnectionLimits,
    shutdown: &CancellationToken,
    connections: &mut JoinSet<()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    // A sender that has closed its half may still read. It also means that hyper does not look out for senders
    // that hang up, so that every request is seen through, counted and logged.
    http.half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_within)
        .max_buf_size(limits.head_bytes);
    let mut full = Seldom::default();
    let mut broken = Seldom::default();
    loop {
        while connections.try_join_next().is_some() {}
        if places.available_permits() == 0 && full.due() {
            tracing::warn!(connections = limits.connections, "all connections are taken: accepting pauses");
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let socket = open(stream, &limits, shutdown);
                let connection =
                    converse(http.clone(), socket, peer, routes.clone(), shutdown.clone(), place);
                connections.spawn(connection);
            }
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                if broken.due() {
                    tracing::warn!(kind = ?error.kind(), code = error.raw_os_error(), "accepting pauses");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

fn open(stream: TcpStream, limits: &ConnectionLimits, shutdown: &CancellationToken) -> Socket {
    // Only a matter of speed.
    _ = stream.set_nodelay(true);
    Socket::new(stream, limits.write_within, limits.linger, shutdown.clone())
}

/// Serve one connection to its end.
async fn converse(
    http: http1::Builder,
    socket: Socket,
    peer: SocketAddr,
    routes: Routes,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = routes.clone().answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Whether accepting failed because of the one peer that was to be accepted.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Remembers when something was last said.
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
