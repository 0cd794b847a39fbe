//! Checks that are the same for every store: names, sizes, and whose error ended a transfer.

use std::io::{self, Read, Write};

use super::{Result, Store, StoreError};
use crate::model::text::shortened;

const NAME_BYTES: usize = 200;

/// Most bytes of a failure's cause: the server's words and our advice.
const CAUSE_BYTES: usize = 800;

/// Wraps a store and passes on valid requests only.
pub(super) struct Checked {
    store: Box<dyn Store>,
    /// What no error may contain: servers repeat what they were sent.
    secrets: Vec<String>,
}

/// The error without secrets, on one line and cut.
pub(super) fn without_secrets(error: StoreError, secrets: &[String]) -> StoreError {
    let shown = |text: String| {
        // A shorter one is no secret, and stands in other words.
        let secrets = secrets.iter().filter(|secret| secret.len() > 2);
        let hide = |text: String, secret: &String| text.replace(&**secret, "***");
        let text = secrets.fold(text, hide);
        let plain: String = text.replace(|c: char| c.is_control(), " ");
        shortened(&plain, CAUSE_BYTES).into_owned()
    };
    match error {
        StoreError::Failed {
            store,
            doing,
            cause,
        } => StoreError::Failed {
            store,
            doing: shown(doing),
            cause: shown(cause),
        },
        StoreError::Damaged { store, name, cause } => StoreError::Damaged {
            store,
            name,
            cause: shown(cause),
        },
        missing @ StoreError::NotFound { .. } => missing,
    }
}

impl Checked {
    pub(super) fn new(store: Box<dyn Store>, secrets: Vec<String>) -> Checked {
        Checked { store, secrets }
    }

    fn shown<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| without_secrets(error, &self.secrets))
    }

    fn check(&self, doing: &str, name: &str) -> Result<()> {
        if is_name(name) {
            return Ok(());
        }
        let shown: String = name.chars().take(NAME_BYTES).collect();
        let cause = "names are of letters, digits, - _ and . and begin with a letter";
        let doing = format_args!("{doing} {shown:?}");
        Err(StoreError::failed(self.store.address(), doing, cause))
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(allowed)
}

impl Store for Checked {
    fn address(&self) -> &str {
        self.store.address()
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        self.check("put", name)?;
        let mut source = ExactReader {
            from,
            size,
            left: size,
            error: None,
        };
        let result = self.store.put(name, size, &mut source);
        self.shown(result)
            .map_err(|error| blame(error, "reading what is to be stored", source.error))
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        self.check("get", name)?;
        let mut sink = Sink { into, error: None };
        let result = self.store.get(name, &mut sink);
        self.shown(result)
            .map_err(|error| blame(error, "writing what was read", sink.error))
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let listed = self.store.list();
        self.shown(listed)
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.check("remove", name)?;
        let removed = self.store.remove(name);
        self.shown(removed)
    }
}

/// If the caller's reader or writer failed, its error is the cause, whatever the transfer reported.
fn blame(error: StoreError, ours: &str, own: Option<String>) -> StoreError {
    match (error, own) {
        (StoreError::Failed { store, doing, .. }, Some(cause)) => StoreError::Failed {
            store,
            doing,
            cause: format!("{ours}: {cause}"),
        },
        (error, _) => error,
    }
}

/// Reads exactly the promised bytes, or fails and remembers the error.
struct ExactReader<'a> {
    from: &'a mut dyn Read,
    size: u64,
    left: u64,
    error: Option<String>,
}

impl Read for ExactReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.left.try_into().unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..room]).and_then(|n| match n {
            0 => {
                let (size, got) = (self.size, self.size - self.left);
                let text = format!("it ended after {got} of {size} bytes");
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            n => Ok(n),
        });
        match &read {
            Ok(n) => self.left -= *n as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.error = Some(error.to_string()),
        }
        read
    }
}

/// Writes, and remembers the error of a failed write.
struct Sink<'a> {
    into: &'a mut (dyn Write + Send),
    error: Option<String>,
}

impl Sink<'_> {
    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.error = Some(error.to_string());
        }
        result
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let result = self.into.write(buffer);
        self.noted(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.into.flush();
        self.noted(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_peer_may_choose() {
        for good in ["manifest", "a", "snapshot-17_x.zst", "A.part-00ff"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(NAME_BYTES + 1);
        for bad in [
            "", ".", "..", ".hidden", "../up", "a/b", "a b", "a\nb", "1st", "-o", "ä", "a%2e",
            &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    fn source(from: &mut dyn Read, size: u64) -> ExactReader<'_> {
        ExactReader {
            from,
            size,
            left: size,
            error: None,
        }
    }

    #[test]
    fn a_source_gives_what_was_promised() {
        let mut more: &[u8] = b"abcdef";
        let mut bytes = Vec::new();
        source(&mut more, 4).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"abcd");
        let mut less: &[u8] = b"ab";
        let mut short = source(&mut less, 4);
        assert!(short.read_to_end(&mut bytes).is_err());
        assert_eq!(short.error.as_deref(), Some("it ended after 2 of 4 bytes"));
    }
}
