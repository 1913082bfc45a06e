//! Messages to a service manager, sent by the real program over a real socket, as systemd would receive them.

use std::{
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use crate::service::{Host, eventually, on_each_keeper};

on_each_keeper!(
    it_hears_that_the_service_is_ready_alive_and_stopping,
    a_worker_says_so_too,
    nothing_is_ready_before_its_tables_are,
);

/// A service manager that receives states.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Create the socket, and set the watchdog's interval, if any.
    fn of(host: &mut Host, watchdog: Option<Duration>) -> Self {
        let path = host.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        host.set("NOTIFY_SOCKET", &path);
        if let Some(watchdog) = watchdog {
            host.set("WATCHDOG_USEC", &watchdog.as_micros().to_string());
        }
        Self { socket }
    }

    /// The next state, if one arrives in time.
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned()),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// All states that have arrived so far.
    fn so_far(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let states = std::iter::from_fn(|| self.next()).collect();
        self.socket.set_nonblocking(false).unwrap();
        states
    }
}

fn it_hears_that_the_service_is_ready_alive_and_stopping(host: &mut Host) {
    let manager = Manager::of(host, Some(Duration::from_millis(400)));
    let began = Instant::now();
    let mut service = host.begin(&[]);
    assert_eq!(manager.next().as_deref(), Some("READY=1"));

    // The program reports repeatedly that it is alive, but at most twice per interval of the watchdog.
    for _ in 0..4 {
        assert_eq!(manager.next().as_deref(), Some("WATCHDOG=1"));
    }
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());

    service.terminate();
    let after: Vec<String> =
        std::iter::from_fn(|| manager.next()).take_while(|state| state != "STOPPING=1").collect();
    assert!(after.iter().all(|state| state == "WATCHDOG=1"), "{after:?}");
    assert_eq!(service.wait(Duration::from_secs(30)).code(), Some(0), "{}", service.log());
    assert_eq!(manager.so_far(), [""; 0], "no state follows");
}

fn a_worker_says_so_too(host: &mut Host) {
    let manager = Manager::of(host, None);
    let worker = host.work();
    assert_eq!(manager.next().as_deref(), Some("READY=1"));
    worker.stop();
    // Without a watchdog, the worker does not report that it is alive.
    assert_eq!(manager.so_far(), ["STOPPING=1"]);
}

fn nothing_is_ready_before_its_tables_are(host: &mut Host) {
    let manager = Manager::of(host, None);
    let service = host.begin(&["--no-migrate"]);
    eventually("not ready", || service.status("/readyz") == Some(503));
    assert_eq!(manager.so_far(), [""; 0]);

    assert_eq!(host.run(&["migrate"]).code, Some(0));
    assert_eq!(manager.next().as_deref(), Some("READY=1"));
    service.stop();
}
