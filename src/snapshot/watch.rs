//! What long work with a snapshot tells of itself while bytes move, and what bounds them.

use std::io::{self, Write};
use std::time::Duration;

use crate::model::manifest;

/// What long work tells of itself, and asks. An error ends the work.
pub trait Watch: Send {
    /// `done` of `total` bytes of this step.
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> io::Result<()>;

    /// The application has the write lock to itself for so long.
    fn pause(&mut self, time: Duration) -> io::Result<()>;
}

/// A watch for work that nobody waits for and that gives way to nobody.
pub struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _: &'static str, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// How a [`Watch`] says that the process ends.
pub fn stop() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")
}

pub(super) fn is_stop(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ConnectionAborted
}

/// A file on its way, seen by a [`Watch`].
pub(super) struct Watched<'w, T> {
    pub inner: T,
    pub watch: &'w mut dyn Watch,
    pub step: &'static str,
    pub done: u64,
    pub total: u64,
    /// The watch ended it.
    pub ended: bool,
    /// What was read cannot be unpacked or written.
    pub failed: Option<io::Error>,
}

impl<T> Watched<'_, T> {
    fn see(&mut self, count: usize) -> io::Result<()> {
        self.done += count as u64;
        let seen = self.watch.progress(self.step, self.done, self.total);
        self.ended |= seen.is_err();
        seen
    }
}

impl<R: io::Read> io::Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.see(count)?;
        Ok(count)
    }
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.done + bytes.len() as u64 > self.total {
            let text = "it is larger than announced";
            self.failed = Some(io::Error::other(text));
            return Err(io::Error::other(text));
        }
        match self.inner.write(bytes) {
            Ok(count) => {
                self.see(count)?;
                Ok(count)
            }
            Err(e) => {
                let told = io::Error::other(e.to_string());
                self.failed = Some(e);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A manifest and no more.
#[derive(Default)]
pub(super) struct Bounded(pub Vec<u8>, bool);

impl Bounded {
    pub(super) fn is_over(&self) -> bool {
        self.1
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > manifest::MAX_BYTES {
            self.1 = true;
            return Err(io::Error::other("it is too large for a manifest"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
