//! A TCP proxy in front of MongoDB that parses message boundaries, to inject a fault at any command.
//!
//! Each message begins with its length. The first field of its document is the name of the command:
//! <https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/>. Commands that the driver sends by itself are
//! not counted.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

/// What happens to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The command and its answer both arrive.
    Passes,
    /// The connection ends before the command arrives.
    Refused,
    /// The command arrives, and the connection ends before the answer.
    Lost,
    /// The command and its answer both arrive, and the judge is notified of the answer.
    Told,
}

/// Decides what happens to each command.
pub(crate) trait Judge: Send + Sync {
    /// What happens to the next command.
    fn next(&self) -> Fate;
    /// Called when the answer to a [`Fate::Told`] command arrives.
    fn answered(&self);
}

/// Commands that a driver sends by itself.
const OF_THE_DRIVER: [&str; 8] =
    ["hello", "isMaster", "ismaster", "ping", "endSessions", "saslStart", "saslContinue", "buildInfo"];

/// The opcode of `OP_MSG`.
const MESSAGE: i32 = 2013;

/// The proxy; it ends with the test.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    judge: Arc<dyn Judge>,
    streams: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

/// State that both directions of a connection share.
#[derive(Default)]
struct Expected {
    /// The next answer does not arrive.
    is_lost: AtomicBool,
    /// The judge is notified of the next answer.
    is_told: AtomicBool,
}

impl Cable {
    pub(crate) fn to((host, port): (String, u16), judge: Arc<dyn Judge>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State { judge, streams: Mutex::default(), ended: AtomicBool::default() });
        let cable = Self { address, state: Arc::clone(&state) };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if state.ended.load(SeqCst) {
                    break;
                }
                let Ok(server) = TcpStream::connect((host.as_str(), port)) else { continue };
                _ = (client.set_nodelay(true), server.set_nodelay(true));
                let expected = Arc::new(Expected::default());
                let copy = |stream: &TcpStream| stream.try_clone().expect("a stream");
                state.streams.lock().expect("not poisoned").extend([copy(&client), copy(&server)]);
                let (one, other, known) = (copy(&client), copy(&server), Arc::clone(&expected));
                let asking = Arc::clone(&state);
                thread::spawn(move || asking.ask(one, other, &known));
                let answering = Arc::clone(&state);
                thread::spawn(move || answering.answer(server, client, &expected));
            }
        });
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        _ = TcpStream::connect(self.address);
        for stream in self.state.streams.lock().expect("not poisoned").drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn ask(&self, mut client: TcpStream, mut server: TcpStream, expected: &Expected) {
        while let Ok(message) = read(&mut client) {
            let fate = if is_a_command(&message) { self.judge.next() } else { Fate::Passes };
            match fate {
                Fate::Passes => {}
                Fate::Refused => break,
                Fate::Lost => expected.is_lost.store(true, SeqCst),
                Fate::Told => expected.is_told.store(true, SeqCst),
            }
            if server.write_all(&message).is_err() {
                break;
            }
        }
        end(&client, &server);
    }

    fn answer(&self, mut server: TcpStream, mut client: TcpStream, expected: &Expected) {
        while let Ok(message) = read(&mut server) {
            if expected.is_lost.load(SeqCst) {
                break;
            }
            if expected.is_told.swap(false, SeqCst) {
                self.judge.answered();
            }
            if client.write_all(&message).is_err() {
                break;
            }
        }
        end(&client, &server);
    }
}

fn end(client: &TcpStream, server: &TcpStream) {
    _ = client.shutdown(Shutdown::Both);
    _ = server.shutdown(Shutdown::Both);
}

/// Read one whole message.
fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let rest = usize::try_from(i32::from_le_bytes(length)).unwrap_or(0).saturating_sub(4);
    let mut message = length.to_vec();
    message.resize(4 + rest, 0);
    stream.read_exact(&mut message[4..])?;
    Ok(message)
}

/// Whether a message is a command that the program sent.
fn is_a_command(message: &[u8]) -> bool {
    let code = message.get(12..16).map(|code| i32::from_le_bytes(code.try_into().expect("four bytes")));
    // The flags, the kind of the section, the length of its document and the type of the first field precede the name.
    let name = message.get(26..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    code == Some(MESSAGE) && !OF_THE_DRIVER.iter().any(|known| known.as_bytes() == name)
}
