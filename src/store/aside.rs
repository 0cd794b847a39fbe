//! A store whose calls may hang in the kernel, where nothing ends them: a folder of which the disk
//! or the server is dead.
//!
//! The calls run on a thread of their own, which has the store. If one neither returns nor moves a
//! byte for long, the caller gets an error and leaves the thread behind. Until that thread is back,
//! no further one tries the folder: each attempt would leave one more behind.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};

use super::{Result, SILENCE, Store, StoreError};
use crate::clock::{Clock, SystemClock};
use crate::model::timestamp;
use crate::thread::spawn_detached;

/// Longest time that a slow disk takes to store what it got.
const STORED_WITHIN: Duration = Duration::from_secs(60);

/// Bytes that pass at once.
const PIECE: usize = 64 << 10;

type Call = Box<dyn FnOnce(&mut dyn Store) + Send>;

/// See the module's head.
pub(super) struct Aside {
    address: String,
    calls: Sender<Call>,
    /// Closed when the thread has ended.
    end: Receiver<()>,
}

/// A call that did not return.
struct HungCall {
    address: String,
    since_ms: i64,
    /// Closed when it has returned after all.
    end: Receiver<()>,
}

static HUNG: Mutex<Vec<HungCall>> = Mutex::new(Vec::new());

/// Opens the store of this address with `open`, on a thread of its own.
pub(super) fn open<S: Store + 'static>(
    address: String,
    open: impl FnOnce() -> Result<S> + Send + 'static,
) -> Result<Aside> {
    const DOING: &str = "open the folder";
    let (calls, called) = unbounded::<Call>();
    let ((alive, end), (tell, told)) = (bounded::<()>(0), bounded(1));
    let aside = Aside {
        address,
        calls,
        end,
    };
    aside.require_answers(DOING)?;
    let body = move || {
        let _alive = alive;
        match open() {
            Ok(mut store) => {
                let _ = tell.send(Ok(()));
                called.iter().for_each(|call| call(&mut store));
            }
            Err(e) => drop(tell.send(Err(e))),
        }
    };
    let began = spawn_detached("store", body);
    began.map_err(|e| StoreError::failed(&aside.address, DOING, e))?;
    aside.wait(&told, DOING, SILENCE)?;
    Ok(aside)
}

impl Aside {
    /// Fails while an earlier call to this store has not returned.
    fn require_answers(&self, doing: &str) -> Result<()> {
        let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
        hung.retain(|call| call.end.try_recv() == Err(TryRecvError::Empty));
        let same = hung.iter().find(|call| call.address == self.address);
        same.map_or(Ok(()), |call| Err(self.hangs(doing, call.since_ms)))
    }

    fn hangs(&self, doing: &str, since_ms: i64) -> StoreError {
        let since = timestamp::rfc3339(since_ms);
        let cause = format!(
            "it hangs since {since}: its disk, or the server that it is mounted from, is dead or \
             very slow; it is tried again once the system gives that call up"
        );
        StoreError::failed(&self.address, doing, cause)
    }

    /// Notes that the call under way does not return.
    fn note_hung(&self, doing: &str, after: Duration) -> StoreError {
        let since_ms = SystemClock.now_ms() - after.as_millis() as i64;
        let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
        hung.push(HungCall {
            address: self.address.clone(),
            since_ms,
            end: self.end.clone(),
        });
        self.hangs(doing, since_ms)
    }

    /// Begins a call. Its result arrives at the receiver.
    fn begin<T: Send + 'static>(
        &self,
        doing: &str,
        call: impl FnOnce(&mut dyn Store) -> Result<T> + Send + 'static,
    ) -> Result<Receiver<Result<T>>> {
        self.require_answers(doing)?;
        let (tell, told) = bounded(1);
        let call = move |store: &mut dyn Store| drop(tell.send(call(store)));
        let _ = self.calls.send(Box::new(call));
        Ok(told)
    }

    fn wait<T>(&self, told: &Receiver<Result<T>>, doing: &str, within: Duration) -> Result<T> {
        match told.recv_timeout(within) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(self.note_hung(doing, within)),
            Err(RecvTimeoutError::Disconnected) => {
                Err(StoreError::failed(&self.address, doing, "its thread ended"))
            }
        }
    }
}

impl Store for Aside {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        let (doing, name) = (format!("put {name}"), name.to_owned());
        let (give, pieces) = bounded(1);
        let told = self.begin(&doing, move |store| {
            let piece = io::Cursor::default();
            let is_over = false;
            let mut source = GivenPieces {
                pieces,
                piece,
                is_over,
            };
            store.put(&name, size, &mut source)
        })?;
        loop {
            let mut piece = vec![0; PIECE];
            let read = from.read(&mut piece).map(|count| {
                piece.truncate(count);
                piece
            });
            let is_last = read.as_ref().map_or(true, Vec::is_empty);
            match give.send_timeout(read, STORED_WITHIN) {
                Ok(()) if !is_last => {}
                Err(e) if e.is_timeout() => return Err(self.note_hung(&doing, STORED_WITHIN)),
                // The call has ended, or ends by this.
                _ => return self.wait(&told, &doing, STORED_WITHIN),
            }
        }
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        let (doing, name) = (format!("get {name}"), name.to_owned());
        let (give, pieces) = bounded(4);
        let told = self.begin(&doing, move |store| {
            store.get(&name, &mut TakenPieces(give))
        })?;
        loop {
            let written = match pieces.recv_timeout(SILENCE) {
                Ok(piece) => into.write_all(&piece),
                Err(RecvTimeoutError::Timeout) => return Err(self.note_hung(&doing, SILENCE)),
                Err(RecvTimeoutError::Disconnected) => {
                    self.wait(&told, &doing, SILENCE)?;
                    let flushed = into.flush();
                    return flushed.map_err(|e| StoreError::failed(&self.address, &doing, e));
                }
            };
            if let Err(e) = written {
                drop(pieces); // which ends the call
                self.wait(&told, &doing, SILENCE)?;
                return Err(StoreError::failed(&self.address, &doing, e));
            }
        }
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let told = self.begin("list", |store| store.list())?;
        self.wait(&told, "list", SILENCE)
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let (doing, name) = (format!("remove {name}"), name.to_owned());
        let told = self.begin(&doing, move |store| store.remove(&name))?;
        self.wait(&told, &doing, SILENCE)
    }
}

/// What the caller reads, on the thread of the store. The last piece is empty: a caller that has
/// given up sends none.
struct GivenPieces {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
    is_over: bool,
}

impl Read for GivenPieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_over && self.piece.position() == self.piece.get_ref().len() as u64 {
            let piece = self.pieces.recv();
            let given_up = |_| io::Error::other("the caller has given up");
            self.piece = io::Cursor::new(piece.map_err(given_up)??);
            self.is_over = self.piece.get_ref().is_empty();
        }
        self.piece.read(buffer)
    }
}

/// What the store writes, on its way to the caller.
struct TakenPieces(Sender<Vec<u8>>);

impl Write for TakenPieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIECE)];
        let given_up = |_| io::Error::other("the caller has given up");
        self.0.send(bytes.to_vec()).map_err(given_up)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that waits in each call until the test lets go.
    struct Stuck(Receiver<()>);

    impl Store for Stuck {
        fn address(&self) -> &str {
            "stuck"
        }

        fn put(&mut self, _: &str, _: u64, from: &mut dyn Read) -> Result<()> {
            // As some readers do, it reads on after the end.
            let read = io::copy(from, &mut io::sink()).and_then(|_| from.read(&mut [0]));
            let read = read.map_err(|e| StoreError::failed("stuck", "put", e))?;
            assert_eq!(read, 0);
            Ok(())
        }

        fn get(&mut self, _: &str, into: &mut (dyn Write + Send)) -> Result<()> {
            into.write_all(b"abc")
                .map_err(|e| StoreError::failed("stuck", "get", e))
        }

        fn list(&mut self) -> Result<Vec<String>> {
            let _ = self.0.recv();
            Ok(Vec::new())
        }

        fn remove(&mut self, _: &str) -> Result<()> {
            Ok(())
        }
    }

    fn store(address: &str) -> (Aside, Sender<()>) {
        let (let_go, stuck) = bounded(0);
        let aside = open(address.into(), move || Ok(Stuck(stuck)));
        (aside.unwrap(), let_go)
    }

    #[test]
    fn a_store_that_hangs_is_let_be_until_it_is_back() {
        let (aside, let_go) = store("one");
        let told = aside.begin("list", |store| store.list()).unwrap();
        let hangs = aside.wait(&told, "list", Duration::from_millis(1));
        let text = hangs.unwrap_err().to_string();
        assert!(text.starts_with("one: list: it hangs since 2"), "{text}");
        let again = || open("one".into(), || Ok(Stuck(bounded(0).1)));
        let refused = again().err().unwrap().to_string();
        let since = |text: &str| text.split_once("since ").unwrap().1.to_owned();
        assert_eq!(since(&refused), since(&text));
        store("another");
        drop((let_go, told));
        let end = aside.end.clone();
        drop(aside);
        assert!(end.recv().is_err(), "its thread is back");
        assert!(again().is_ok());
    }

    #[test]
    fn a_source_or_sink_that_fails_ends_the_call() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no more"))
            }
        }
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("no room"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut aside, _let_go) = store("two");
        let put = aside.put("a", 9, &mut Fails).unwrap_err().to_string();
        assert!(put.contains("no more"), "{put}");
        let get = aside.get("a", &mut Fails).unwrap_err().to_string();
        assert!(get.contains("no room"), "{get}");
        let mut read = Vec::new();
        aside.get("a", &mut read).unwrap();
        assert_eq!(read, b"abc");
        aside.put("a", 9, &mut &b"123456789"[..]).unwrap();
    }

    /// A call that returns late must not take what it got so far for the whole.
    #[test]
    fn a_caller_that_gives_up_is_no_end_of_what_is_stored() {
        let (give, pieces) = bounded(2);
        let piece = io::Cursor::default();
        let is_over = false;
        let mut source = GivenPieces {
            pieces,
            piece,
            is_over,
        };
        give.send(Ok(b"half".to_vec())).unwrap();
        drop(give);
        assert!(source.read_to_end(&mut Vec::new()).is_err());
    }
}
