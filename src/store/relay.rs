//! A local relay that connects to a server without Nagle's algorithm.
//!
//! sqlx 0.9 leaves Nagle's algorithm on and does not expose its socket. A batch does not fit into one segment. Its last
//! part then waits for an acknowledgement that the server delays by 40 ms, several times per transaction. A busy service
//! spent most of its time on this wait. sqlx also accepts a Unix socket, so clerk-sync gives it the relay's. The relay
//! passes each connection on, byte by byte, over TCP with `TCP_NODELAY`. TLS stays end to end between sqlx and the
//! server.
//!
//! The relay also keeps idle connections alive. A listening connection may be idle for hours, and a NAT may drop it silently.
//!
//! The relay knows both ends of each connection. If the server sees different ones, something sits between them, perhaps a
//! pooler.
//!
//! The socket is abstract: it has no file and disappears with the process. Only Linux has such sockets; on other systems sqlx
//! connects directly.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::task::AbortOnDropHandle;

/// Relays connections until it is dropped.
pub(super) struct Relay {
    pub(super) paths: Paths,
    _task: AbortOnDropHandle<()>,
}

/// The local and remote address of every open connection.
#[derive(Clone, Default)]
pub(super) struct Paths(Arc<Mutex<HashSet<(SocketAddr, SocketAddr)>>>);

impl Paths {
    /// Whether there is an open connection between these two addresses.
    pub(super) fn contain(&self, near: SocketAddr, far: SocketAddr) -> bool {
        self.with(|paths| paths.contains(&(near, far)))
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashSet<(SocketAddr, SocketAddr)>) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Relay {
    /// Start a relay to a server where the system allows it. Returns it with the folder that holds its socket `name`.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables))]
    pub(super) fn to(host: &str, port: u16, name: &str) -> Option<(PathBuf, Self)> {
        #[cfg(target_os = "linux")]
        match linux::start(host, port, name) {
            Ok(started) => return Some(started),
            Err(error) => {
                tracing::warn!(kind = ?error.kind(), "no relay to the database: large batches will be slow");
            }
        }
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

    use rustix::net::sockopt::{self, set_tcp_user_timeout};
    use tokio::{
        io::copy_bidirectional_with_sizes,
        net::{TcpStream, UnixListener, UnixStream},
        task::JoinSet,
        time::sleep,
    };
    use tokio_util::task::AbortOnDropHandle;

    use super::{Paths, Relay};

    /// Size of the copy buffers.
    const BUFFER_BYTES: usize = 32 * 1024;

    /// How long sent data may stay unacknowledged, in milliseconds, before the server counts as gone. Without this limit the
    /// kernel would retry for a quarter of an hour.
    const UNHEARD_MS: u32 = 4000;

    /// Idle time after which the kernel probes a connection. Without an answer, it closes the connection after at most
    /// the same time again.
    const KEEP_ALIVE: Duration = Duration::from_mins(1);

    /// How long to wait before accepting again after an error, for example when file descriptors have run out.
    const PAUSE: Duration = Duration::from_millis(100);

    /// The folder's name begins with NUL, which makes the socket in it abstract.
    pub(super) fn start(host: &str, port: u16, name: &str) -> io::Result<(PathBuf, Relay)> {
        let folder = PathBuf::from(format!("\0clerk-sync-{:032x}", rand::random::<u128>()));
        let listener = UnixListener::bind(folder.join(name))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let paths = Paths::default();
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, host, port, paths.clone())));
        Ok((folder, Relay { paths, _task: task }))
    }

    async fn accept(listener: UnixListener, host: String, port: u16, paths: Paths) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((near, _)) => _ = connections.spawn(pass_on(near, host.clone(), port, paths.clone())),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Relay until one side closes. If the server is unreachable, sqlx sees a connection that closes at once.
    async fn pass_on(mut near: UnixStream, host: String, port: u16, paths: Paths) {
        let Ok(mut far) = TcpStream::connect((host.as_str(), port)).await else { return };
        // A failure only costs speed.
        _ = far.set_nodelay(true);
        _ = set_tcp_user_timeout(&far, UNHEARD_MS);
        // A failure only delays the detection of a lost connection.
        _ = keep_alive(&far);
        let path = ends(&far).ok();
        if let Some(path) = path {
            paths.with(|paths| paths.insert(path));
        }
        _ = copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await;
        if let Some(path) = path {
            paths.with(|paths| paths.remove(&path));
        }
    }

    /// Let the kernel probe the other side when the connection is idle.
    fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
        sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE / 4)?;
        sockopt::set_tcp_keepcnt(stream, 4)?;
        sockopt::set_socket_keepalive(stream, true)
    }

    fn ends(stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((stream.local_addr()?, stream.peer_addr()?))
    }
}
