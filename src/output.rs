//! Standard output of commands.

use std::io::{self, ErrorKind, Write};

/// The output of a command. Its errors are the command's errors, while `println!` would panic. A
/// reader that has closed the pipe (`| head`) is no error.
pub struct Output<W>(W);

impl<W: Write> Output<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Output<W> {
        Output(out)
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

/// Describes the error in a user's words.
pub fn failed(e: io::Error) -> String {
    format!("writing to standard output: {e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_who_left_had_enough() {
        let said = |kind| {
            let mut out = Output::new(Broken(kind));
            out.write_all(b"text").and_then(|()| out.flush())
        };
        assert!(said(ErrorKind::BrokenPipe).is_ok());
        let text = failed(said(ErrorKind::StorageFull).unwrap_err());
        assert!(text.starts_with("writing to standard output: "), "{text}");
    }
}
