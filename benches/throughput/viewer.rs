//! Somebody who goes through the dashboard while events come in.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::service::{ADMIN_TOKEN, PrivateListener};

/// The overview, as it refreshes itself, and what people open from there.
const PAGES: [&str; 8] = ["/", "/users", "/", "/sign-ups", "/", "/deliveries", "/queue", "/sinks"];

/// Between two pages: somebody in a hurry.
const A_LOOK: Duration = Duration::from_secs(2);

/// A browser's worth of requests.
pub(crate) struct Viewer {
    thread: JoinHandle<anyhow::Result<usize>>,
    stop: Sender<()>,
}

impl Viewer {
    /// Sign in and go on after so many pages.
    pub(crate) fn open(dashboard: PrivateListener, seen_before: usize) -> anyhow::Result<Self> {
        let form = format!("token={ADMIN_TOKEN}");
        let answer = dashboard.ask(&format!(
            "POST /sign-in HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        ))?;
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
        let cookie = cookie.context("the dashboard lets nobody in")?.to_owned();
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            let mut seen = 0;
            for page in PAGES.into_iter().cycle().skip(seen_before) {
                let answer = dashboard.ask(&format!(
                    "GET {page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncookie: {cookie}\r\n\r\n"
                ))?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "the page {page} is not shown");
                seen += 1;
                if stopped.recv_timeout(A_LOOK) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            Ok(seen)
        });
        Ok(Self { thread, stop })
    }

    /// How many pages were seen.
    pub(crate) fn close(self) -> anyhow::Result<usize> {
        drop(self.stop);
        self.thread.join().expect("it does not panic")
    }
}
