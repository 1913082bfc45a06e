//! There is no stream: the program was built without the feature `redis`.
#![expect(clippy::missing_errors_doc, reason = "nothing of this is ever called")]

use super::{Depth, Entry, Options, StreamError};

type Result<T> = std::result::Result<T, StreamError>;

pub fn is_url(_: &str) -> bool {
    false
}

#[derive(Clone, Debug)]
pub enum Key {}

impl Key {
    pub fn parse(_: &str) -> Option<Self> {
        None
    }
}

#[derive(Clone, Debug)]
pub enum Stream {}

pub type Producer = Stream;
pub type Consumer = Stream;

impl Stream {
    pub fn new(_: Options) -> Result<Self> {
        Err(StreamError::Unusable("this program was built without the feature redis"))
    }

    pub fn producer(&self) -> Producer {
        self.clone()
    }

    pub fn consumer(&self) -> Consumer {
        self.clone()
    }

    pub async fn check(&self) -> Result<()> {
        match *self {}
    }

    pub async fn look(&self) -> Result<()> {
        match *self {}
    }

    pub async fn depth(&self) -> Result<Depth> {
        match *self {}
    }

    pub async fn put(&mut self, _: &[Entry]) -> Result<()> {
        match *self {}
    }

    pub async fn take(&mut self, _: usize, _: usize) -> Result<Vec<Entry>> {
        match *self {}
    }

    pub async fn acknowledge(&mut self, _: &[String]) -> Result<()> {
        match *self {}
    }
}
