//! Reading a body that nobody has vouched for yet.
//!
//! A body is read under a limit and a deadline, and all that are in flight share one budget, so that strangers can
//! neither fill the memory nor wait in it. Memory is asked for as bytes arrive, never because a header promises them.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::error::Problem;

/// What all bodies in flight may take together, in bytes, unless a single one may be larger.
const SHARED_BYTES: usize = 16 * 1024 * 1024;

/// Reads bodies.
#[derive(Debug)]
pub struct Bodies {
    max_bytes: usize,
    /// How long after the head a body may take.
    pub within: Duration,
    /// One permit a byte.
    room: Semaphore,
}

/// A body, and its share of the budget for as long as this lives.
pub(super) struct Unverified<'a> {
    pub(super) bytes: Bytes,
    pub(super) room: SemaphorePermit<'a>,
}

impl Bodies {
    /// Bodies of at most `max_bytes`, within 5 s of the head.
    pub fn new(max_bytes: usize) -> Self {
        Self::sharing(max_bytes, SHARED_BYTES)
    }

    fn sharing(max_bytes: usize, shared_bytes: usize) -> Self {
        let room = shared_bytes.max(max_bytes).min(Semaphore::MAX_PERMITS);
        Self { max_bytes, within: Duration::from_secs(5), room: Semaphore::new(room) }
    }

    /// Read a body whose head arrived at `head_at`. One that announces too much is not even asked for.
    pub(super) async fn read(&self, body: Body, head_at: Instant) -> Result<Unverified<'_>, Problem> {
        let announced = body.size_hint();
        if announced.lower() > self.max_bytes as u64 {
            return Err(Problem::BodyTooLarge);
        }
        let ceiling = announced.exact().and_then(|exact| exact.try_into().ok()).unwrap_or(self.max_bytes);
        timeout_at(head_at + self.within, self.collect(body, ceiling))
            .await
            .map_err(|_| Problem::BodyTimeout)?
    }

    async fn collect(&self, mut body: Body, ceiling: usize) -> Result<Unverified<'_>, Problem> {
        let mut bytes = Vec::new();
        let mut room = self.take(0)?;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Problem::IncompleteBody)?.into_data() else { continue };
            let needed = bytes.len() + data.len();
            if needed > self.max_bytes {
                return Err(Problem::BodyTooLarge);
            }
            if needed > bytes.capacity() {
                let capacity = (2 * bytes.len()).min(ceiling).max(needed);
                room.merge(self.take(capacity - bytes.capacity())?);
                bytes.reserve_exact(capacity - bytes.len());
            }
            // Copied, because a chunk of one byte keeps the whole buffer alive that it was read into.
            bytes.extend_from_slice(&data);
        }
        Ok(Unverified { bytes: bytes.into(), room })
    }

    fn take(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Problem> {
        let bytes = u32::try_from(bytes).map_err(|_| Problem::Overloaded)?;
        self.room.try_acquire_many(bytes).map_err(|_| Problem::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;

    use super::*;

    /// A body whose length nobody announces.
    struct Chunks(VecDeque<Bytes>);

    impl hyper::body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    #[tokio::test]
    async fn bodies_in_flight_share_one_budget_and_give_it_back() {
        let bodies = Bodies::sharing(1000, 1500);
        let read = |size: usize| bodies.read(Body::from(vec![b'x'; size]), Instant::now());
        let Ok(first) = read(1000).await else { panic!("no room for the first") };
        assert_eq!(first.bytes.len(), 1000);
        assert_eq!(read(501).await.err(), Some(Problem::Overloaded));
        assert!(read(500).await.is_ok());
        drop(first);
        assert!(read(1000).await.is_ok());
        assert_eq!(bodies.room.available_permits(), 1500);
    }

    #[tokio::test]
    async fn the_limit_is_exact_with_and_without_an_announced_length() {
        let bodies = Bodies::new(1000);
        for (size, expected) in [(0, Ok(0)), (1000, Ok(1000)), (1001, Err(Problem::BodyTooLarge))] {
            let announced = Body::from(vec![b'x'; size]);
            let chunks: Vec<_> = vec![b'x'; size].chunks(300).map(Bytes::copy_from_slice).collect();
            let unannounced = Body::new(Chunks(chunks.into()));
            for body in [announced, unannounced] {
                let read = bodies.read(body, Instant::now()).await.map(|body| body.bytes.len());
                assert_eq!(read, expected);
            }
        }
    }
}
