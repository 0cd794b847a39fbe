//! The way from frames to messages and back: compression, parts, ids, and limits of size.
//!
//! A peer's bytes do not decide how much memory we use: a message unpacks to at most
//! [`MAX_MESSAGE_BYTES`]. A larger frame, or a message that the broker would refuse, travels in
//! parts. These wait on disk and are unpacked piece by piece, into at most `max_frame_bytes`.

use std::borrow::Cow;
use std::io::Read;

use xxhash_rust::xxh3::xxh3_128_with_seed;
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use super::{FrameError, FramePart};

/// Largest message, in bytes after unpacking: small against the 64 MB of the machines this runs on.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Largest frame that is assembled from parts, in bytes after unpacking, unless the configuration
/// says otherwise (`max_frame_bytes`).
pub const FRAME_BYTES: usize = 32 << 20;

/// Bounds of that setting.
pub const FRAME_BYTES_ALLOWED: std::ops::RangeInclusive<usize> =
    2 * MAX_MESSAGE_BYTES..=MAX_FRAME_BYTES;

/// The largest that it may be set to.
pub const MAX_FRAME_BYTES: usize = 256 << 20;

/// Largest row that can be sent where frames have at most `frame` bytes: up to half a message of
/// other rows may precede it.
pub const fn row_bytes(frame: usize) -> usize {
    frame - MAX_MESSAGE_BYTES
}

/// Largest row that any node can send, in bytes.
pub const MAX_ROW_BYTES: usize = row_bytes(MAX_FRAME_BYTES);

/// Magic number of a zstd frame (RFC 8878). CBOR of ours begins with an array instead.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Smallest frame that is compressed, in bytes: below that, compression costs more than it saves.
const COMPRESS_FROM: usize = 256;

/// Largest window that parts may require, as a power of 2. Our level uses 2^19, the highest level
/// 2^27.
const MAX_WINDOW_LOG: u32 = 23;

/// Upper bound of the bytes that [`FramePart::encode`] adds.
pub(super) const PART_OVERHEAD: usize = 64;

/// A frame in the form in which messages carry it.
#[derive(Debug, Clone)]
pub struct PackedFrame {
    bytes: Vec<u8>,
    /// Whether it unpacks to more than one message may.
    is_large: bool,
}

/// Packs a frame; without a `compressor`, uncompressed. The caller keeps the compressor between
/// calls, because setting one up costs more than compressing a small frame.
pub fn pack(raw: Vec<u8>, compressor: Option<&mut zstd::bulk::Compressor<'_>>) -> PackedFrame {
    let is_large = raw.len() > MAX_MESSAGE_BYTES;
    let bytes = match compressor {
        Some(zstd) if raw.len() >= COMPRESS_FROM => match zstd.compress(&raw) {
            Ok(packed) if packed.len() < raw.len() => packed,
            _ => raw, // uncompressed is always a valid frame
        },
        _ => raw,
    };
    PackedFrame { bytes, is_large }
}

impl PackedFrame {
    /// Size in bytes.
    #[allow(clippy::len_without_is_empty)] // no frame is
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The messages of this frame, of at most `limit` bytes each: one with the whole frame, or
    /// parts. The iterator makes parts one at a time.
    pub fn messages(self, salt: u64, limit: usize) -> Messages {
        let limit = limit.min(MAX_MESSAGE_BYTES);
        let is_whole = !self.is_large && self.bytes.len() <= limit;
        let piece = match is_whole {
            true => self.bytes.len(),
            false => limit.saturating_sub(PART_OVERHEAD),
        };
        let piece = piece.max(1);
        Messages {
            id: message_id(&self.bytes, salt),
            count: self.bytes.len().div_ceil(piece) as u32,
            bytes: self.bytes,
            is_whole,
            piece,
            index: 0,
        }
    }
}

/// The messages of one frame that have not been made yet.
#[derive(Debug)]
pub struct Messages {
    bytes: Vec<u8>,
    is_whole: bool,
    /// Message id of the frame.
    id: [u8; 16],
    /// Bytes of each part but the last.
    piece: usize,
    count: u32,
    /// Index of the next part.
    index: u32,
}

impl Iterator for Messages {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let index = (self.index < self.count).then_some(self.index)?;
        self.index += 1;
        if self.is_whole {
            return Some(std::mem::take(&mut self.bytes));
        }
        let (id, count) = (&self.id, self.count);
        let bytes = self.bytes.chunks(self.piece).nth(index as usize)?;
        let part = FramePart {
            id,
            index,
            count,
            bytes,
        };
        Some(part.encode())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.count - self.index) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Messages {}

/// The uncompressed bytes of a message, at most [`MAX_MESSAGE_BYTES`]. A larger message or a broken
/// zstd frame is an error.
pub fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, FrameError> {
    let fits = |size| match size > MAX_MESSAGE_BYTES {
        true => Err(FrameError::TooLarge(size, MAX_MESSAGE_BYTES)),
        false => Ok(size),
    };
    fits(bytes.len())?;
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return Ok(Cow::Borrowed(bytes));
    }
    let size = match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(size)) => fits(usize::try_from(size).unwrap_or(usize::MAX))?,
        Ok(None) => return unpack_unsized(bytes).map(Cow::Owned),
        Err(_) => return Err(FrameError::Zstd("zstd frame with a broken header".into())),
    };
    // zstd decompresses at once into memory of that size, which serves as the window.
    let raw = zstd::bulk::decompress(bytes, size).map_err(|e| FrameError::Zstd(e.to_string()))?;
    Ok(Cow::Owned(raw))
}

/// Unpacks a zstd frame without a size, as the Go version's compressor writes small ones. The
/// memory grows with the content, up to [`MAX_MESSAGE_BYTES`].
fn unpack_unsized(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut zstd = zstd::stream::read::Decoder::with_buffer(bytes).map_err(broken)?;
    zstd.window_log_max(MAX_WINDOW_LOG).map_err(broken)?;
    let mut raw = Vec::new();
    let mut bounded = zstd.take(MAX_MESSAGE_BYTES as u64 + 1);
    bounded.read_to_end(&mut raw).map_err(broken)?;
    match raw.len() > MAX_MESSAGE_BYTES {
        true => Err(FrameError::TooLarge(raw.len(), MAX_MESSAGE_BYTES)),
        false => Ok(raw),
    }
}

/// Assembles a frame from its parts, and unpacks them as they come.
pub struct Parts {
    raw: Vec<u8>,
    /// The decompressor; none if the frame is not compressed.
    zstd: Option<zstd::stream::raw::Decoder<'static>>,
    limit: usize,
    at_end: bool,
}

impl Parts {
    /// Begins a frame of at most `limit` bytes. `first` is the content of the first part, which
    /// tells whether the frame is compressed; the caller adds it by [`Self::add`] like the others.
    pub fn new(first: &[u8], limit: usize) -> Result<Self, FrameError> {
        let zstd = match first.starts_with(&ZSTD_MAGIC) {
            true => {
                let mut zstd = zstd::stream::raw::Decoder::new().map_err(broken)?;
                let window = zstd::stream::raw::DParameter::WindowLogMax(MAX_WINDOW_LOG);
                zstd.set_parameter(window).map_err(broken)?;
                Some(zstd)
            }
            false => None,
        };
        Ok(Parts {
            raw: Vec::new(),
            zstd,
            limit,
            at_end: false,
        })
    }

    /// Appends the content of the next part. Fails if the frame grows above the limit or the zstd
    /// frame is broken.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let Some(zstd) = &mut self.zstd else {
            if self.raw.len() + bytes.len() > self.limit {
                return Err(FrameError::TooLarge(
                    self.raw.len() + bytes.len(),
                    self.limit,
                ));
            }
            self.raw.extend_from_slice(bytes);
            return Ok(());
        };
        let mut input = InBuffer::around(bytes);
        let mut piece = vec![0; 64 << 10];
        loop {
            if self.at_end && input.pos() < bytes.len() {
                return Err(FrameError::Zstd(
                    "more after the end of the zstd frame".into(),
                ));
            }
            let mut output = OutBuffer::around(&mut piece[..]);
            let left = zstd.run(&mut input, &mut output).map_err(broken)?;
            let (written, is_full) = (output.pos(), output.pos() == output.capacity());
            if self.raw.len() + written > self.limit {
                return Err(FrameError::TooLarge(self.raw.len() + written, self.limit));
            }
            self.raw.extend_from_slice(&piece[..written]);
            self.at_end = left == 0;
            if input.pos() == bytes.len() && (self.at_end || !is_full) {
                return Ok(());
            }
        }
    }

    /// The uncompressed frame. Fails if the zstd frame has not ended.
    pub fn finish(self) -> Result<Vec<u8>, FrameError> {
        match self.zstd.is_none() || self.at_end {
            true => Ok(self.raw),
            false => Err(FrameError::Zstd("zstd frame without its end".into())),
        }
    }
}

fn broken(e: std::io::Error) -> FrameError {
    FrameError::Zstd(e.to_string())
}

/// Message id of a packed frame. It has 128 bits, so that two frames never share one by chance.
/// `salt` is 0, or a new number when the broker must not take a repeated publication for a
/// duplicate.
pub fn message_id(packed: &[u8], salt: u64) -> [u8; 16] {
    xxh3_128_with_seed(packed, salt).to_be_bytes()
}

/// An id in hexadecimal, as in the `Nats-Msg-Id` header.
pub fn id_text(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::frame::Frame;

    fn compressor() -> zstd::bulk::Compressor<'static> {
        zstd::bulk::Compressor::new(1).unwrap()
    }

    /// The frame that a reader assembles from the messages.
    fn read(messages: &[Vec<u8>], limit: usize) -> Result<Vec<u8>, FrameError> {
        let mut parts: Option<Parts> = None;
        for (i, message) in messages.iter().enumerate() {
            let raw = unpack(message)?;
            let Frame::Part(part) = Frame::decode(&raw)? else {
                panic!("not a part")
            };
            assert_eq!((part.index, part.count), (i as u32, messages.len() as u32));
            if parts.is_none() {
                parts = Some(Parts::new(part.bytes, limit)?);
            }
            parts.as_mut().unwrap().add(part.bytes)?;
        }
        parts.unwrap().finish()
    }

    #[test]
    fn packing_is_undone() {
        let raw = vec![b'x'; 100_000];
        let packed = pack(raw.clone(), Some(&mut compressor()));
        let messages: Vec<_> = packed.messages(0, 1000).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!(unpack(&messages[0]).unwrap(), raw);
        let plain = pack(raw.clone(), None);
        let messages: Vec<_> = plain.messages(0, 100_000).collect();
        assert_eq!(unpack(&messages[0]).unwrap(), raw);
    }

    #[test]
    fn parts_fit_and_join_to_the_whole() {
        let whole: Vec<u8> = (0..100_000u64).map(|i| ((i * i) >> 7) as u8).collect();
        for zstd in [Some(&mut compressor()), None] {
            let packed = pack(whole.clone(), zstd);
            let messages: Vec<_> = packed.messages(0, 4096).collect();
            assert!(messages.len() > 1 && messages.iter().all(|m| m.len() <= 4096));
            assert_eq!(read(&messages, 100_000).unwrap(), whole);
            assert!(matches!(
                read(&messages, 99_999),
                Err(FrameError::TooLarge(100_000.., 99_999))
            ));
            let cut = &messages[..messages.len() - 1];
            let mut parts = Parts::new(&[], MAX_FRAME_BYTES).unwrap();
            for message in cut {
                let Ok(Frame::Part(part)) = Frame::decode(message) else {
                    panic!()
                };
                if part.index == 0 {
                    parts = Parts::new(part.bytes, MAX_FRAME_BYTES).unwrap();
                }
                parts.add(part.bytes).unwrap();
            }
            assert!(parts.finish().map_or(true, |raw| raw.len() < whole.len()));
        }
    }

    /// A row of zeros is small in the message and large after unpacking.
    #[test]
    fn a_frame_that_unpacks_to_too_much_goes_in_parts() {
        let whole = vec![0; MAX_MESSAGE_BYTES + 1];
        let packed = pack(whole.clone(), Some(&mut compressor()));
        let messages: Vec<_> = packed.messages(0, 1 << 20).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!(read(&messages, MAX_FRAME_BYTES).unwrap(), whole);
        let bomb = compressor().compress(&whole).unwrap();
        assert!(matches!(unpack(&bomb), Err(FrameError::TooLarge(..))));
        assert!(matches!(unpack(&whole), Err(FrameError::TooLarge(..))));
    }

    #[test]
    fn a_size_that_lies_and_a_window_that_is_large_are_refused() {
        let raw = vec![7; 10_000];
        let mut packed = compressor().compress(&raw).unwrap();
        assert_eq!(packed[4] & 0xe0, 0x60, "two bytes of size, one segment");
        packed[5..7].fill(0);
        assert!(matches!(unpack(&packed), Err(FrameError::Zstd(_))));
        let mut windowed = ZSTD_MAGIC.to_vec();
        windowed.extend([0x00, 17 << 3]); // no size, a window of 2^27
        windowed.extend([0x01, 0x00, 0x00]);
        assert!(matches!(unpack(&windowed), Err(FrameError::Zstd(_))));
        let mut parts = Parts::new(&windowed, MAX_FRAME_BYTES).unwrap();
        assert!(parts.add(&windowed).is_err());
        windowed[5] = 9 << 3; // 2^19 is what we write
        Parts::new(&windowed, MAX_FRAME_BYTES)
            .unwrap()
            .add(&windowed)
            .unwrap();
        let twice = [packed.clone(), packed].concat();
        assert!(unpack(&twice).is_err());
    }
}
