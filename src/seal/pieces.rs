//! Texts of any length, sealed piece by piece: memory does not grow with the size.
//!
//! ```text
//! "HLS" 2, id of the key (8 bytes), random bytes (19), then per 64 KiB of the text its
//! XChaCha20-Poly1305 under the nonce: random bytes, number of the piece (4 bytes, the highest
//! first), 1 for the last piece and 0 for the others
//! ```
//!
//! So no piece can be left out, repeated, moved or cut off.

use std::io::{self, Read, Write};

use super::key::{KeyId, random};
use super::{ClusterKey, MAGIC_OF_PIECES, NONCE, Seal, SealPlace, TAG, Unopened, decrypt, encrypt};

const PIECE: usize = 64 << 10;
const RANDOM: usize = NONCE - 5;
const HEAD: usize = MAGIC_OF_PIECES.len() + size_of::<KeyId>() + RANDOM;

/// Bytes of a text of `size` bytes once it is sealed.
pub fn sealed_size(size: u64) -> u64 {
    let pieces = size.div_ceil(PIECE as u64).max(1);
    HEAD as u64 + size + pieces * TAG as u64
}

fn nonce(random: &[u8], number: u32, is_last: bool) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce[..RANDOM].copy_from_slice(random);
    nonce[RANDOM..NONCE - 1].copy_from_slice(&number.to_be_bytes());
    nonce[NONCE - 1] = is_last.into();
    nonce
}

/// Reads a text and gives it sealed.
pub struct Sealer<'s> {
    key: &'s ClusterKey,
    context: Vec<u8>,
    from: &'s mut dyn Read,
    /// Bytes of the text that are not read yet.
    left: u64,
    random: [u8; RANDOM],
    /// Number of the next piece; none after the last.
    next: Option<u32>,
    /// Sealed bytes, of which `given` are given.
    sealed: Vec<u8>,
    given: usize,
}

impl<'s> Sealer<'s> {
    /// Seals the `size` bytes of `from`.
    pub fn new(
        key: &'s ClusterKey,
        context: SealPlace<'_>,
        size: u64,
        from: &'s mut dyn Read,
    ) -> io::Result<Sealer<'s>> {
        let mut start = [0; RANDOM];
        random(&mut start)?;
        let mut sealed = MAGIC_OF_PIECES.to_vec();
        sealed.extend_from_slice(&key.id);
        sealed.extend_from_slice(&start);
        Ok(Sealer {
            key,
            context: context.bytes(),
            from,
            left: size,
            random: start,
            next: Some(0),
            sealed,
            given: 0,
        })
    }

    /// Reads and seals the next piece.
    fn seal_next(&mut self, number: u32) -> io::Result<()> {
        let size = self.left.min(PIECE as u64) as usize;
        self.sealed.resize(size, 0);
        self.given = 0;
        self.from.read_exact(&mut self.sealed)?;
        self.left -= size as u64;
        let nonce = nonce(&self.random, number, self.left == 0);
        let tag = encrypt(self.key, &nonce, &self.context, &mut self.sealed);
        self.sealed.extend_from_slice(&tag);
        self.next = (self.left > 0).then_some(number + 1);
        Ok(())
    }
}

impl Read for Sealer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.sealed.len()
            && let Some(number) = self.next
        {
            self.seal_next(number)?;
        }
        let ready = &self.sealed[self.given..];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.given += count;
        Ok(count)
    }
}

/// Takes a sealed text and writes it opened. Only [`Opener::finish`] says that it was whole.
pub struct Opener<'s> {
    seal: &'s Seal,
    context: Vec<u8>,
    into: &'s mut (dyn Write + Send),
    buffer: Vec<u8>,
    state: State<'s>,
    /// Why the text does not open.
    refused: Option<Unopened>,
}

enum State<'s> {
    /// The head is not there yet.
    Begins,
    /// The text is not sealed.
    Open,
    Sealed {
        key: &'s ClusterKey,
        random: [u8; RANDOM],
        number: u32,
    },
}

impl<'s> Opener<'s> {
    /// Opens into `into`.
    pub fn new(
        seal: &'s Seal,
        context: SealPlace<'_>,
        into: &'s mut (dyn Write + Send),
    ) -> Opener<'s> {
        Opener {
            seal,
            context: context.bytes(),
            into,
            buffer: Vec::new(),
            state: State::Begins,
            refused: None,
        }
    }

    /// Why the text does not open; none as far as it does.
    pub fn refused(&self) -> Option<Unopened> {
        self.refused
    }

    /// The text has ended. Fails if it was not whole ([`Self::refused`] says why), or if its last
    /// bytes cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.begin(true)?;
        match self.state {
            State::Sealed { .. } => {
                let last = std::mem::take(&mut self.buffer);
                self.open_piece(last, true)
            }
            _ => Ok(()),
        }
    }

    /// Reads the head, as soon as it is there.
    fn begin(&mut self, is_all: bool) -> io::Result<()> {
        if !matches!(self.state, State::Begins) {
            return Ok(());
        }
        let known = self.buffer.len().min(MAGIC_OF_PIECES.len());
        let may_be_sealed = self.buffer[..known] == MAGIC_OF_PIECES[..known];
        let is_sealed = known == MAGIC_OF_PIECES.len() && may_be_sealed;
        if !is_sealed && (is_all || !may_be_sealed) {
            if self.seal.requires() {
                return Err(self.refuse(Unopened::NotSealed));
            }
            self.state = State::Open;
            return self.into.write_all(&std::mem::take(&mut self.buffer));
        }
        if self.buffer.len() < HEAD {
            return match is_all {
                true => Err(self.refuse(Unopened::Forged)),
                false => Ok(()),
            };
        }
        let key = match self.seal.key_of(&self.buffer) {
            Ok(key) => key,
            Err(why) => return Err(self.refuse(why)),
        };
        let mut random = [0; RANDOM];
        random.copy_from_slice(&self.buffer[HEAD - RANDOM..HEAD]);
        self.buffer.drain(..HEAD);
        self.state = State::Sealed {
            key,
            random,
            number: 0,
        };
        Ok(())
    }

    fn open_piece(&mut self, mut piece: Vec<u8>, is_last: bool) -> io::Result<()> {
        let State::Sealed {
            key,
            random,
            number,
        } = &mut self.state
        else {
            return Ok(());
        };
        let nonce = nonce(&*random, *number, is_last);
        let size = piece.len().checked_sub(TAG);
        let opened = size.ok_or(Unopened::Forged).and_then(|size| {
            let (body, tag) = piece.split_at_mut(size);
            decrypt(key, &nonce, &self.context, body, tag).map(|()| size)
        });
        let next = number.checked_add(1).ok_or(Unopened::Forged);
        match opened.and_then(|size| Ok((size, next?))) {
            Ok((size, next)) => {
                *number = next;
                self.into.write_all(&piece[..size])
            }
            Err(why) => Err(self.refuse(why)),
        }
    }

    fn refuse(&mut self, why: Unopened) -> io::Error {
        self.refused = Some(why);
        io::Error::other(why.to_string())
    }
}

impl Write for Opener<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let State::Open = self.state {
            return self.into.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        self.begin(false)?;
        // A piece is opened once a byte behind it is there: so it is not the last.
        while matches!(self.state, State::Sealed { .. }) && self.buffer.len() > PIECE + TAG {
            let rest = self.buffer.split_off(PIECE + TAG);
            let piece = std::mem::replace(&mut self.buffer, rest);
            self.open_piece(piece, false)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}
