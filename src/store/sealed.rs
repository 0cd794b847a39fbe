//! A store whose objects are sealed with the cluster key.

use std::io::{Read, Write};
use std::sync::Arc;

use super::{Result, Store, StoreError};
use crate::seal::{Opener, Seal, SealPlace, Sealer, Unopened, sealed_size};

/// Wraps a store.
pub(super) struct SealedStore {
    pub store: Box<dyn Store>,
    pub seal: Arc<Seal>,
    /// `nats.stream_prefix`: clusters with one key may share a store.
    pub cluster: String,
}

impl SealedStore {
    /// The error for an object that does not open.
    fn unopened(&self, name: &str, why: Unopened) -> StoreError {
        let store = self.store.address();
        if self.seal.awaits_key(why) {
            return StoreError::failed(store, format_args!("get {name}"), why);
        }
        let cluster = &self.cluster;
        let place = SealPlace::Object { cluster, name };
        let refusals = &self.seal.refusals;
        refusals.note(place, why, refusals.fingerprint(place, &[]));
        StoreError::Damaged {
            store: store.to_owned(),
            name: name.to_owned(),
            cause: why.to_string(),
        }
    }
}

impl Store for SealedStore {
    fn address(&self) -> &str {
        self.store.address()
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        let cluster = &self.cluster;
        let place = SealPlace::Object { cluster, name };
        let (seal, store) = (&self.seal, &mut self.store);
        let Some(key) = seal.key() else {
            return store.put(name, size, from);
        };
        match Sealer::new(key, place, size, from) {
            Ok(mut sealer) => store.put(name, sealed_size(size), &mut sealer),
            Err(e) => Err(StoreError::failed(store.address(), "seal", e)),
        }
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        let cluster = &self.cluster;
        let mut opener = Opener::new(&self.seal, SealPlace::Object { cluster, name }, into);
        let got = self.store.get(name, &mut opener);
        let ended = got.is_ok().then(|| opener.finish());
        if let Some(why) = opener.refused() {
            return Err(self.unopened(name, why));
        }
        got?;
        let written = ended.unwrap_or(Ok(()));
        written.map_err(|e| StoreError::failed(self.address(), "writing what was read", e))
    }

    fn list(&mut self) -> Result<Vec<String>> {
        self.store.list()
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.store.remove(name)
    }
}
