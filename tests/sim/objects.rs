//! The object store: in memory; it fails, loses and tears objects.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use harmonylite::model::manifest::NAME;
use harmonylite::store::{Store, StoreError};

use crate::random::Random;

/// Bytes of one piece of a transfer.
const PIECE: usize = 4096;

struct Inner {
    objects: BTreeMap<String, Vec<u8>>,
    /// Manifests that were replaced.
    old_manifests: Vec<Vec<u8>>,
    random: Random,
    /// Percentage of calls that fail.
    fails: usize,
    written: u64,
}

/// The store, one for all nodes.
#[derive(Clone)]
pub struct Objects(Arc<Mutex<Inner>>);

impl Objects {
    pub fn new(seed: u64, fails: usize) -> Self {
        Objects(Arc::new(Mutex::new(Inner {
            objects: BTreeMap::new(),
            old_manifests: Vec::new(),
            random: Random::new(!seed),
            fails,
            written: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Lets every call succeed from now on.
    pub fn heal(&self) {
        self.lock().fails = 0;
    }

    /// Runs `f` on a store that works. It leaves no trace in later random numbers.
    pub fn quietly<T>(&self, f: impl FnOnce(&mut dyn Store) -> T) -> T {
        let (random, fails) = {
            let mut shared = self.lock();
            (shared.random.clone(), std::mem::take(&mut shared.fails))
        };
        let done = f(&mut self.clone());
        let mut shared = self.lock();
        (shared.random, shared.fails) = (random, fails);
        done
    }

    /// Number of objects written so far.
    pub fn written(&self) -> u64 {
        self.lock().written
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Removes an object, tears off its second half, or puts an earlier manifest back. Returns a
    /// text that says which.
    pub fn spoil(&self) -> String {
        let mut shared = self.lock();
        let names: Vec<String> = shared.objects.keys().cloned().collect();
        if names.is_empty() {
            return "nothing to spoil".into();
        }
        let which = shared.random.below(names.len());
        let name = &names[which];
        match shared.random.below(4) {
            0 => {
                shared.objects.remove(name);
                format!("lost {which}")
            }
            1 => {
                let object = shared.objects.get_mut(name).expect("listed");
                object.truncate(object.len() / 2);
                format!("torn {which}")
            }
            2 => {
                shared.objects.clear();
                "emptied".into()
            }
            _ => {
                let count = shared.old_manifests.len();
                let old = shared.random.below(count);
                if let Some(bytes) = shared.old_manifests.get(old).cloned() {
                    shared.objects.insert(NAME.to_owned(), bytes);
                }
                format!("manifest {old} of {count} is back")
            }
        }
    }

    pub fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        self.lock().may_fail("open")?;
        Ok(Box::new(self.clone()))
    }
}

impl Inner {
    fn may_fail(&mut self, doing: &str) -> Result<(), StoreError> {
        let fails = self.fails;
        match self.random.percent(fails) {
            true => Err(failure(doing)),
            false => Ok(()),
        }
    }
}

fn failure(doing: &str) -> StoreError {
    StoreError::Failed {
        store: "sim".into(),
        doing: doing.into(),
        cause: "so the seed says".into(),
    }
}

impl Store for Objects {
    fn address(&self) -> &str {
        "sim"
    }

    fn put(&mut self, name: &str, _: u64, from: &mut dyn Read) -> Result<(), StoreError> {
        self.lock().may_fail("put")?;
        let (mut bytes, mut piece) = (Vec::new(), [0; PIECE]);
        loop {
            match from.read(&mut piece).map_err(|_| failure("read"))? {
                0 => break,
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
        let mut shared = self.lock();
        if let Err(e) = shared.may_fail("put the end") {
            if shared.random.percent(50) {
                bytes.truncate(bytes.len() / 2); // it cannot do better than something torn
                shared.objects.insert(name.to_owned(), bytes);
            }
            return Err(e);
        }
        shared.written += 1;
        if let Some(old) = shared.objects.insert(name.to_owned(), bytes)
            && name == NAME
        {
            shared.old_manifests.push(old);
        }
        shared.may_fail("hear that it is put")
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<(), StoreError> {
        self.lock().may_fail("get")?;
        let Some(bytes) = self.lock().objects.get(name).cloned() else {
            let (store, name) = ("sim".to_owned(), name.to_owned());
            return Err(StoreError::NotFound { store, name });
        };
        for piece in bytes.chunks(PIECE) {
            into.write_all(piece).map_err(|_| failure("write"))?;
        }
        self.lock().may_fail("get the end")
    }

    fn list(&mut self) -> Result<Vec<String>, StoreError> {
        let mut shared = self.lock();
        shared.may_fail("list")?;
        Ok(shared.objects.keys().cloned().collect())
    }

    fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        let mut shared = self.lock();
        shared.may_fail("remove")?;
        shared.objects.remove(name);
        Ok(())
    }
}
