//! The way to a server without Nagle's algorithm.
//!
//! sqlx 0.9 leaves it on and does not give out its socket. A batch does not fit one segment, and its last part then waits for an
//! acknowledgement that the server delays by 40 ms, several times a transaction: a busy service spent most of its time on that.
//! But sqlx takes a Unix socket. So it gets one of ours, and the relay passes each connection on, byte by byte, over TCP with
//! `TCP_NODELAY`. TLS is between sqlx and the server, as without.
//!
//! It also keeps idle connections alive. One that listens may be idle for hours, and a NAT that forgets it tells nobody.
//!
//! The relay also knows both ends of each connection, and so whether the server sees the same: if it does not,
//! somebody stands between, perhaps a pooler.
//!
//! The socket is an abstract one, which has no file and is gone with the process. Other systems than Linux do not have such
//! sockets: there sqlx connects directly.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::task::AbortOnDropHandle;

/// Passes connections on as long as it lives.
pub(super) struct Relay {
    pub(super) paths: Paths,
    _task: AbortOnDropHandle<()>,
}

/// Both ends, ours first, of every connection that is open.
#[derive(Clone, Default)]
pub(super) struct Paths(Arc<Mutex<HashSet<(SocketAddr, SocketAddr)>>>);

impl Paths {
    /// Whether we have a connection between these two ends.
    pub(super) fn contain(&self, near: SocketAddr, far: SocketAddr) -> bool {
        self.with(|paths| paths.contains(&(near, far)))
    }

    fn with<T>(&self, what: impl FnOnce(&mut HashSet<(SocketAddr, SocketAddr)>) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Relay {
    /// A relay to a server, where there can be one, and the folder in which its socket has this name.
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

    /// What is read at once.
    const BUFFER_BYTES: usize = 32 * 1024;

    /// How long what we send may go unheard, in milliseconds, before the server is taken for gone: where it vanishes without
    /// a word, the kernel would go on for a quarter of an hour.
    const UNHEARD_MS: u32 = 4000;

    /// A connection that is idle for longer is asked whether it is still there; after as long without an answer it is not.
    const KEEP_ALIVE: Duration = Duration::from_mins(1);

    /// How long accepting pauses when descriptors have run out.
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

    /// Until one side hangs up. Where the server cannot be reached, sqlx sees a connection that ends at once.
    async fn pass_on(mut near: UnixStream, host: String, port: u16, paths: Paths) {
        let Ok(mut far) = TcpStream::connect((host.as_str(), port)).await else { return };
        // Only a matter of speed.
        _ = far.set_nodelay(true);
        _ = set_tcp_user_timeout(&far, UNHEARD_MS);
        // Only a matter of when we notice.
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

    /// Let the kernel ask the other side from time to time whether it is there.
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
