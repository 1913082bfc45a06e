//! Stand-in for the stream: the program was built without the feature `redis`.
#![expect(clippy::unused_async, reason = "with the feature these functions await")]

use super::{Depth, Entry, Options, StreamError};
use crate::model::Delivery;

type Result<T> = std::result::Result<T, StreamError>;

const ABSENT: StreamError = StreamError::Unusable("this program was built without the feature redis");

#[derive(Clone, Debug)]
pub struct Absent;

pub type Key = Absent;
pub type Stream = Absent;
pub type Producer = Absent;
pub type Consumer = Absent;

pub fn is_url(_: &str) -> bool {
    false
}

impl Absent {
    pub fn parse(_: &str) -> Option<Self> {
        None
    }

    pub fn new(_: Options) -> Result<Self> {
        Err(ABSENT)
    }

    pub fn producer(&self) -> Producer {
        self.clone()
    }

    pub fn consumer(&self) -> Consumer {
        self.clone()
    }

    pub async fn check(&self) -> Result<()> {
        Err(ABSENT)
    }

    pub async fn depth(&self) -> Result<Depth> {
        Err(ABSENT)
    }

    pub async fn put(&mut self, _: &[Delivery]) -> Result<()> {
        Err(ABSENT)
    }

    pub async fn take(&mut self, _: usize, _: usize) -> Result<Vec<Entry>> {
        Err(ABSENT)
    }

    pub async fn acknowledge(&mut self, _: &[String]) -> Result<()> {
        Err(ABSENT)
    }
}
