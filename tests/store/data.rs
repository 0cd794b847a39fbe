//! Bytes to store: many, cheap, and different at every place.

use std::io::{self, Read, Write};

pub const SECRET: &str = "s3cr3t-pässword/+%";
/// Larger than several parts and windows, and no multiple of anything.
pub const LARGE: u64 = 20 * 1024 * 1024 + 4711;

/// `size` bytes that depend on `seed` and on where they stand.
pub struct Pattern {
    state: u64,
    left: u64,
}

impl Pattern {
    pub fn new(seed: u64, size: u64) -> Pattern {
        let state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
        Pattern { state, left: size }
    }
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Odd pieces, as readers give them.
        let room = buffer.len().min(9973).min(self.left as usize);
        for byte in &mut buffer[..room] {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            *byte = self.state as u8;
        }
        self.left -= room as u64;
        Ok(room)
    }
}

/// Takes exactly the bytes of a pattern.
pub struct Expected {
    pattern: Pattern,
    pub differs: bool,
}

impl Expected {
    pub fn new(seed: u64, size: u64) -> Expected {
        let pattern = Pattern::new(seed, size);
        Expected {
            pattern,
            differs: false,
        }
    }

    pub fn is_complete(&self) -> bool {
        !self.differs && self.pattern.left == 0
    }
}

impl Write for Expected {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut wanted = Vec::with_capacity(buffer.len());
        let mut pattern = (&mut self.pattern).take(buffer.len() as u64);
        pattern.read_to_end(&mut wanted)?;
        self.differs |= wanted != buffer;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails after `good` bytes, as a reader of a file on a dying disk.
pub struct Failing(pub Pattern);

pub const READ_ERROR: &str = "the disk is dying";

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other(READ_ERROR)),
            n => Ok(n),
        }
    }
}

/// Takes `room` bytes and no more.
pub struct Full {
    pub room: usize,
}

pub const WRITE_ERROR: &str = "no room here";

impl Write for Full {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let taken = buffer.len().min(self.room);
        self.room -= taken;
        match taken {
            0 => Err(io::Error::other(WRITE_ERROR)),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
