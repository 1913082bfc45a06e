//! There is no stream: the program was built without the feature `redis`.
#![expect(
    clippy::missing_errors_doc,
    clippy::unused_async,
    reason = "the feature has errors, and something to wait for"
)]

use super::{Depth, Entry, Options, StreamError};

type Result<T> = std::result::Result<T, StreamError>;

const ABSENT: StreamError = StreamError::Unusable("this program was built without the feature redis");

pub fn is_url(_: &str) -> bool {
    false
}

#[derive(Clone, Debug)]
pub struct Key;

impl Key {
    pub fn parse(_: &str) -> Option<Self> {
        None
    }
}

#[derive(Clone, Debug)]
pub struct Stream;

impl Stream {
    pub fn new(_: Options) -> Result<Self> {
        Err(ABSENT)
    }

    pub fn producer(&self) -> Producer {
        Producer
    }

    pub fn consumer(&self) -> Consumer {
        Consumer
    }

    pub async fn check(&self) -> Result<()> {
        Err(ABSENT)
    }

    pub async fn look(&self) -> Result<()> {
        Err(ABSENT)
    }

    pub async fn depth(&self) -> Result<Depth> {
        Err(ABSENT)
    }
}

#[derive(Debug)]
pub struct Producer;

impl Producer {
    pub async fn put(&mut self, _: &[Entry]) -> Result<()> {
        Err(ABSENT)
    }
}

#[derive(Debug)]
pub struct Consumer;

impl Consumer {
    pub async fn take(&mut self, _: usize, _: usize) -> Result<Vec<Entry>> {
        Err(ABSENT)
    }

    pub async fn acknowledge(&mut self, _: &[String]) -> Result<()> {
        Err(ABSENT)
    }
}
