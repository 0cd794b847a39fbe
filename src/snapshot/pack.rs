//! Compresses a database file and unpacks it, streamed: memory does not grow with the size.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use sha2::{Digest, Sha256};

/// Compression level: zstd's own default. It packs 400 MB/s and more on a server, some 20 MB/s on
/// ARMv6.
const LEVEL: i32 = 3;

/// Largest window that is unpacked, as a power of two in bytes: a file that another node compressed
/// must not fill the memory here. Level 3 uses 2 MB.
const MAX_WINDOW_LOG: u32 = 23;

/// Size and hash of a packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedFile {
    pub size: u64,
    /// In hexadecimal.
    pub sha256: String,
}

/// Writes, and hashes what it writes.
struct Hashing<W> {
    into: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(into: W) -> Self {
        Hashing {
            into,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn packed(self) -> PackedFile {
        let hash = self.hash.finalize();
        PackedFile {
            size: self.size,
            sha256: hash.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.into.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// Compresses a file into an empty one. `watch` is told how many bytes are done, and can end the
/// work.
pub(crate) fn pack(
    from: File,
    into: File,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<PackedFile> {
    let mut encoder = zstd::Encoder::new(Hashing::new(into), LEVEL)?;
    encoder.include_checksum(true)?;
    let mut from = BufReader::with_capacity(128 << 10, from);
    let mut done = 0;
    let mut piece = vec![0; 128 << 10];
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            break;
        }
        encoder.write_all(&piece[..count])?;
        done += count as u64;
        watch(done)?;
    }
    Ok(encoder.finish()?.packed())
}

/// Receives a packed file from a store and writes the database. Only [`Unpacker::finish`] checks
/// what was written.
pub(crate) struct Unpacker {
    decoder: Hashing<zstd::stream::write::Decoder<'static, Limited>>,
}

/// A file that does not grow beyond its announced size.
struct Limited {
    file: File,
    left: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("the database is larger than announced"));
        }
        let count = self.file.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Unpacker {
    /// Unpacks into an empty file, which becomes `size` bytes long.
    pub(crate) fn new(into: File, size: u64) -> io::Result<Unpacker> {
        let limited = Limited {
            file: into,
            left: size,
        };
        let mut decoder = zstd::stream::write::Decoder::new(limited)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        Ok(Unpacker {
            decoder: Hashing::new(decoder),
        })
    }

    /// Ends unpacking. Returns size and hash of the packed bytes. Fails if the database is shorter
    /// than announced.
    pub(crate) fn finish(mut self) -> io::Result<PackedFile> {
        self.decoder.flush()?;
        let Hashing { into, hash, size } = self.decoder;
        let limited = into.into_inner();
        if limited.left > 0 {
            return Err(io::Error::other("the database is shorter than announced"));
        }
        let ended = Hashing {
            into: io::sink(),
            hash,
            size,
        };
        Ok(ended.packed())
    }
}

impl Write for Unpacker {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.decoder.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.decoder.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let [plain, packed, back] = ["plain", "packed", "back"].map(|n| dir.path().join(n));
        let content: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        std::fs::write(&plain, &content).unwrap();
        let mut seen = 0;
        let [from, into] = [File::open(&plain), File::create(&packed)].map(Result::unwrap);
        let done = pack(from, into, &mut |bytes| {
            seen = bytes;
            Ok(())
        });
        let done = done.unwrap();
        assert_eq!(seen, content.len() as u64);
        let bytes = std::fs::read(&packed).unwrap();
        assert_eq!(bytes.len() as u64, done.size);

        let unpack = |bytes: &[u8], size: usize| {
            let mut unpacker = Unpacker::new(File::create(&back)?, size as u64)?;
            unpacker.write_all(bytes)?;
            unpacker.finish()
        };
        assert_eq!(unpack(&bytes, content.len()).unwrap(), done);
        assert_eq!(std::fs::read(&back).unwrap(), content);
        assert!(unpack(&bytes, content.len() - 1).is_err(), "larger");
        assert!(unpack(&bytes, content.len() + 1).is_err(), "shorter");
        assert!(unpack(&bytes[..bytes.len() / 2], content.len()).is_err());
        assert!(unpack(b"no zstd at all", 10).is_err());
    }

    #[test]
    fn a_watcher_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, vec![7; 1 << 20]).unwrap();
        let stop = |_| Err(io::Error::other("stopped"));
        let into = File::create(dir.path().join("packed")).unwrap();
        let error = pack(File::open(&plain).unwrap(), into, &mut { stop }).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
    }
}
