//! A store whose transfers keep to a limit of bytes a second.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::sleep;

use super::{Result, Store};
use crate::stream::bandwidth::Bandwidth;

/// Most bytes that pass at once, so that each wait is short.
const PIECE: usize = 16 * 1024;

/// Wraps a store.
pub(super) struct LimitedStore {
    pub store: Box<dyn Store>,
    pub limit: Arc<Bandwidth>,
}

impl Store for LimitedStore {
    fn address(&self) -> &str {
        self.store.address()
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        let limit = &self.limit;
        self.store
            .put(name, size, &mut LimitedSource { from, limit })
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        let limit = &self.limit;
        self.store.get(name, &mut LimitedSink { into, limit })
    }

    fn list(&mut self) -> Result<Vec<String>> {
        self.store.list()
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.store.remove(name)
    }
}

struct LimitedSource<'a> {
    from: &'a mut dyn Read,
    limit: &'a Bandwidth,
}

impl Read for LimitedSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(PIECE);
        let count = self.from.read(&mut buffer[..most])?;
        sleep(self.limit.sent(count));
        Ok(count)
    }
}

struct LimitedSink<'a> {
    into: &'a mut (dyn Write + Send),
    limit: &'a Bandwidth,
}

impl Write for LimitedSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.into.write(&bytes[..bytes.len().min(PIECE)])?;
        sleep(self.limit.received(count));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}
