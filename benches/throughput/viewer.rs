//! A viewer who goes through the dashboard while events arrive.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::service::{ADMIN_TOKEN, PrivateListener};

/// The overview, which refreshes itself, and the pages that viewers open from it.
const PAGES: [&str; 8] = ["/", "/users", "/", "/sign-ups", "/", "/deliveries", "/queue", "/sinks"];

/// The time between two pages, for a viewer in a hurry.
const A_LOOK: Duration = Duration::from_secs(2);

/// Sends a browser's requests.
pub(crate) struct Viewer {
    thread: JoinHandle<anyhow::Result<usize>>,
    stop: Sender<()>,
}

impl Viewer {
    /// Sign in, and continue after this many pages.
    pub(crate) fn open(dashboard: PrivateListener, seen_before: usize) -> anyhow::Result<Self> {
        let form = format!("token={ADMIN_TOKEN}");
        let answer = dashboard.ask(&format!(
            "POST /sign-in HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        ))?;
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
        let cookie = cookie.context("the dashboard refused the sign-in")?.to_owned();
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

    /// Stop; returns how many pages were viewed.
    pub(crate) fn close(self) -> anyhow::Result<usize> {
        drop(self.stop);
        self.thread.join().expect("it does not panic")
    }
}
