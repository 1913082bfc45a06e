//! One peer's socket, which does not wait for ever and does not hang up rudely.
//!
//! A peer that reads nothing while we have something to say is given up after a deadline. When we are done, what the
//! peer is still sending is read and thrown away for a while: closing at once would reset the connection, and the
//! peer would never see the answer that told it why.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

/// A TCP stream with a write deadline and a lingering close.
pub(super) struct Socket {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    linger: Duration,
    lingering: Option<Pin<Box<Sleep>>>,
    /// Once cancelled, only a peer that is in the middle of something is waited for.
    shutdown: CancellationToken,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        write_within: Duration,
        linger: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(write_within));
        Self { stream: Box::pin(stream), linger, lingering: None, shutdown }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buf)
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

    /// Say that nothing more will come, then read on until the peer says the same.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(this.stream.as_mut().poll_shutdown(cx))?;
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
