//! The task that works on the stream of webhooks: a turn takes one transaction's worth of entries, applies them, and
//! deletes them.
//!
//! Entries that the database could not take stay with their consumer, and the next turn tries them again. If the process
//! dies, the stream gives them to another consumer.

use std::{
    mem::take,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    queue::tell,
    worker::{Task, Turn},
};
use crate::{
    store::StoreError,
    stream::{Consumer, Entry, Stream, StreamError},
    sync::{Clock, drain::BATCH, stream::Intake},
};

/// The maximum number of bytes of bodies per turn, not counting the last portion.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// How long the database part of a turn may take.
const TURN: Duration = Duration::from_secs(7);

/// The wait after a failure of the stream.
const PAUSE: Duration = Duration::from_secs(1);

/// Applies webhooks from the stream.
pub struct Streaming {
    stream: Stream,
    intake: Intake,
    clock: Clock,
    /// Places that no turn is using.
    places: Mutex<Vec<Place>>,
    /// Whether the log already reports that the stream is unusable.
    is_failing: AtomicBool,
}

/// State that one turn hands to the next.
struct Place {
    consumer: Consumer,
    left: Vec<Entry>,
}

impl Streaming {
    pub fn new(stream: Stream, intake: Intake, clock: Clock) -> Self {
        Self { stream, intake, clock, places: Mutex::default(), is_failing: AtomicBool::new(false) }
    }

    /// Take entries if none are left, apply them, and delete the finished ones.
    async fn step(&self, place: &mut Place) -> Result<Option<StoreError>, StreamError> {
        if place.left.is_empty() {
            place.left = place.consumer.take(BATCH as usize, BATCH_BYTES).await?;
        }
        let (entries, deadline) = (take(&mut place.left), Instant::now() + TURN);
        let taken_in = self.intake.take_in(entries, (self.clock)(), deadline).await;
        taken_in.worked.iter().for_each(tell);
        place.left = taken_in.left;
        place.consumer.acknowledge(&taken_in.finished).await?;
        Ok(taken_in.trouble)
    }
}

#[async_trait]
impl Task for Streaming {
    fn name(&self) -> &'static str {
        "stream"
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        let new = || Place { consumer: self.stream.consumer(), left: Vec::new() };
        let mut place = self.places.lock().await.pop().unwrap_or_else(new);
        let result = self.step(&mut place).await;
        self.places.lock().await.push(place);
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Ok(trouble) => {
                if was_failing {
                    tracing::info!("work resumes: the stream can be used again");
                }
                trouble.map_or(Ok(Turn::More), Err)
            }
            Err(error) => {
                if !was_failing {
                    tracing::warn!(%error, "work waits until the stream can be used again");
                }
                sleep(PAUSE).await;
                Ok(Turn::More)
            }
        }
    }
}
