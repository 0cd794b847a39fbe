//! How long work with a snapshot reports its progress and is ended, and limits on its bytes.

use std::io::{self, Write};
use std::time::Duration;

use crate::model::manifest;

/// Told of the progress of long work. An error of it ends the work.
pub trait Watch: Send {
    /// Reports that `done` of `total` bytes of this step are done.
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> io::Result<()>;

    /// Leaves the write lock to the application for this long.
    fn pause(&mut self, time: Duration) -> io::Result<()>;
}

/// The bytes that are done when `seen` of `total` rows are.
pub(super) fn share(bytes: u64, seen: u64, total: u64) -> u64 {
    let done = u128::from(bytes) * u128::from(seen) / u128::from(total.max(1));
    bytes.min(done as u64)
}

/// A watch for work that nobody waits for and that leaves no pauses.
pub struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _: &'static str, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// The error by which a [`Watch`] says that the process ends.
pub fn stop() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "stopped")
}

pub(super) fn is_stop(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ConnectionAborted
}

/// A file in transfer, whose bytes are reported to a [`Watch`].
pub(super) struct Watched<'w, T> {
    pub inner: T,
    pub watch: &'w mut dyn Watch,
    pub step: &'static str,
    pub done: u64,
    pub total: u64,
    /// Whether the watch ended the transfer.
    pub ended: bool,
    /// Why bytes could not be unpacked or written.
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

/// A buffer for a manifest, which refuses more bytes than a manifest may have.
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
