//! Bytes to store: many, cheap, and different at every place.

use std::io::{self, Read, Write};

pub const SECRET: &str = "s3cr3t-pässword/+%";
/// Larger than several parts and windows, and a multiple of neither.
pub const LARGE: u64 = 20 * 1024 * 1024 + 4711;

/// `size` bytes that depend on `seed` and on their place.
pub struct Pattern {
    state: u64,
    left: u64,
}

impl Pattern {
    pub fn new(seed: u64, size: u64) -> Pattern {
        let state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
        Pattern { state, left: size }
    }

    /// Byte `place`, counted from the end, whatever the size of a read.
    fn byte(&self, place: u64) -> u8 {
        (place.wrapping_mul(self.state) >> 32) as u8
    }
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Pieces of odd sizes, as readers may give.
        let room = buffer.len().min(9973).min(self.left as usize);
        for (byte, back) in buffer[..room].iter_mut().zip(0..) {
            *byte = self.byte(self.left - back);
        }
        self.left -= room as u64;
        Ok(room)
    }
}

/// A writer that accepts exactly the bytes of a pattern.
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
        let mut rest = buffer;
        let mut wanted = [0; 9973];
        while !rest.is_empty() {
            let room = rest.len().min(wanted.len());
            let read = self.pattern.read(&mut wanted[..room])?;
            let (now, later) = rest.split_at(room);
            self.differs |= wanted[..read] != *now;
            rest = later;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that fails after `good` bytes, like a file on a dying disk.
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

/// A writer with room for `room` bytes.
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
