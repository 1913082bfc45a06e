//! A TCP proxy in front of a database, which simulates network faults.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// What the proxy does with connections and their data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Data is passed on.
    Pass,
    /// Connections are closed at once.
    Refuse,
    /// Data is silently held back, and connections stay open.
    Silent,
    /// Connections are refused in the way that poolers refuse unknown tenants.
    Unwelcome,
}

/// The proxy; it stops when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    mode: AtomicU8,
    delay: AtomicU64,
    connections: AtomicUsize,
    /// How often a client sent data after the server had sent some.
    turns: AtomicUsize,
    /// The current generation of connections. Those of earlier generations are dead.
    life: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
    /// The server that new connections lead to.
    server: Mutex<(String, u16)>,
    ended: AtomicBool,
}

impl Proxy {
    pub(crate) fn to(server: (String, u16), mode: Mode, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let proxy = Self { address, state: Arc::default() };
        proxy.set(mode);
        proxy.lead_to(server);
        let delay = delay.as_millis().try_into().expect("not that long");
        proxy.state.delay.store(delay, SeqCst);
        let state = Arc::clone(&proxy.state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if state.ended.load(SeqCst) {
                    break;
                }
                state.connections.fetch_add(1, SeqCst);
                if state.is(Mode::Refuse) {
                    continue;
                }
                if state.is(Mode::Unwelcome) {
                    thread::spawn(move || turn_away(stream));
                    continue;
                }
                let (host, port) = state.server.lock().expect("not poisoned").clone();
                let Ok(upstream) = TcpStream::connect((host.as_str(), port)) else { continue };
                state.join(&stream, &upstream);
            }
        });
        proxy
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.mode.store(mode as u8, SeqCst);
    }

    /// Let new connections lead to this server.
    pub(crate) fn lead_to(&self, server: (String, u16)) {
        *self.state.server.lock().expect("not poisoned") = server;
    }

    /// Cut the connections that are open.
    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().expect("not poisoned").drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on, silently hold back the data of open connections; new connections work.
    pub(crate) fn forget(&self) {
        self.state.life.fetch_add(1, SeqCst);
    }

    /// How often clients have waited for the server so far, over all connections.
    pub(crate) fn turns(&self) -> usize {
        self.state.turns.load(SeqCst)
    }

    /// The number of connection attempts so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }
}

/// Read the client's start-up message, and answer that the tenant does not exist.
fn turn_away(mut stream: TcpStream) {
    let mut read = |bytes: usize| {
        let mut buffer = vec![0; bytes];
        stream.read_exact(&mut buffer).map(|()| buffer)
    };
    let Ok(head) = read(8) else { return };
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length == 8 {
        // The client asks for TLS.
        _ = stream.write_all(b"N");
        return turn_away(stream);
    }
    if read(length - 8).is_err() {
        return;
    }
    let fields = b"SFATAL\0VFATAL\0CXX000\0MTenant or user not found\0\0";
    let length = u32::try_from(fields.len() + 4).expect("short");
    _ = stream.write_all(&[b"E", &length.to_be_bytes()[..], fields].concat());
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        _ = TcpStream::connect(self.address);
        self.cut();
    }
}

impl State {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(SeqCst) == mode as u8
    }

    fn join(self: &Arc<Self>, one: &TcpStream, other: &TcpStream) {
        let answered = Arc::new(AtomicBool::new(true));
        for (from, to, is_client) in [(one, other, true), (other, one, false)] {
            _ = from.set_nodelay(true);
            let (from, to) = (from.try_clone().expect("a stream"), to.try_clone().expect("a stream"));
            self.streams.lock().expect("not poisoned").push(from.try_clone().expect("a stream"));
            let (state, answered) = (Arc::clone(self), Arc::clone(&answered));
            thread::spawn(move || {
                state.pump(from, to, || {
                    if answered.swap(!is_client, SeqCst) && is_client {
                        state.turns.fetch_add(1, SeqCst);
                    }
                });
            });
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, speaks: impl Fn()) {
        let mut buffer = vec![0; 64 * 1024];
        let life = self.life.load(SeqCst);
        let is_dead = || self.is(Mode::Silent) || self.life.load(SeqCst) > life;
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            speaks();
            thread::sleep(Duration::from_millis(self.delay.load(SeqCst)));
            while is_dead() && !self.ended.load(SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            if to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
        _ = to.shutdown(Shutdown::Both);
        _ = from.shutdown(Shutdown::Both);
    }
}
