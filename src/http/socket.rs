//! A peer's socket with deadlines and a graceful close.
//!
//! A peer that does not read an answer is dropped after a deadline, and so is one that is silent or too slow. When the
//! service closes a connection, it first reads and discards for a while what the peer still sends. Closing at once would
//! reset the connection, and the peer would never see the answer with the reason.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

use super::pace::{ConnectionLimits, Pace, Stage};

/// A TCP stream with deadlines and a lingering close.
pub(super) struct Socket {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    pace: Arc<Pace>,
    /// For the deadline of the current stage, or an earlier one.
    timer: Pin<Box<Sleep>>,
    linger: Duration,
    lingering: Option<Pin<Box<Sleep>>>,
    /// Once cancelled, a lingering close waits only for peers that are still sending.
    shutdown: CancellationToken,
    /// Completes when silent connections have to close after `shutdown`.
    farewell: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The connection ended, or the peer exceeded a deadline.
    is_over: bool,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        pace: Arc<Pace>,
        limits: &ConnectionLimits,
        shutdown: CancellationToken,
    ) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits.write_within));
        let (stopping, farewell) = (shutdown.clone(), limits.farewell);
        let farewell = async move {
            stopping.cancelled().await;
            sleep(farewell).await;
        };
        Self {
            stream: Box::pin(stream),
            pace,
            timer: Box::pin(sleep(limits.head_within)),
            linger: limits.linger,
            lingering: None,
            shutdown,
            farewell: Box::pin(farewell),
            is_over: false,
        }
    }

    /// Ready once a silent peer has exceeded its deadline.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over {
            return Poll::Ready(());
        }
        let (stage, Some(until)) = self.pace.look(cx) else { return Poll::Pending };
        let has_begun = stage == Stage::Head;
        let is_over =
            self.poll_timer(cx, until) || (!has_begun && self.farewell.as_mut().poll(cx).is_ready());
        // A request that has arrived but was not reported yet must not meet a close.
        if !is_over || (!has_begun && self.has_unread()) {
            return Poll::Pending;
        }
        self.is_over = true;
        Poll::Ready(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, until: Instant) -> bool {
        if self.timer.deadline() > until {
            self.timer.as_mut().reset(until);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if until <= Instant::now() {
                return true;
            }
            self.timer.as_mut().reset(until);
        }
        false
    }

    fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.stream.get_ref()).is_ok_and(|bytes| bytes > 0)
    }
}

impl AsyncRead for Socket {
    /// Reports the end of the stream once the peer has exceeded its deadline.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.stream.as_mut().poll_read(cx, buf);
        if read.is_pending() {
            return this.poll_patience(cx).map(Ok);
        }
        if buf.filled().len() > before {
            this.pace.heard();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    /// Send the end of the stream, then read until the peer sends its end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(this.stream.as_mut().poll_shutdown(cx))?;
        }
        this.pace.look(cx);
        if this.is_over || this.pace.is_displaced() {
            return Poll::Ready(Ok(()));
        }
        let linger = this.linger;
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(linger)));
        let mut thrown_away = [0; 8 * 1024];
        let mut busy = false;
        loop {
            if lingering.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut thrown_away);
            match this.stream.as_mut().poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => busy = true,
                Poll::Pending if busy || !this.shutdown.is_cancelled() => return Poll::Pending,
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
