//! An object-store bucket of the NATS servers.

use std::io::{Read, Write};

use super::{IfAbsent, Result, Store, StoreError};
use crate::config::snapshot::NatsStore;
use crate::stream::StreamError;
use crate::stream::client::Client;
use crate::stream::object_store::{ObjectError, ObjectStore};

struct NatsBucket {
    objects: ObjectStore,
    address: String,
}

pub(super) fn open(
    settings: &NatsStore,
    stream_prefix: &str,
    connect: &dyn Fn() -> std::result::Result<Client, StreamError>,
    missing: IfAbsent,
) -> Result<impl Store + use<>> {
    let bucket = match &settings.bucket {
        Some(bucket) => bucket.clone(),
        None => format!("{stream_prefix}-snapshot-store"),
    };
    let client = connect().map_err(|cause| StoreError::failed("nats", "connect", cause))?;
    let address = format!("nats {}/{bucket}", client.address());
    let failed = |cause| StoreError::failed(&address, "open bucket", cause);
    if missing == IfAbsent::Refuse && !ObjectStore::exists(&client, &bucket).map_err(failed)? {
        return Err(StoreError::no_place(
            &address,
            "bucket",
            "snapshot.nats.bucket",
        ));
    }
    let objects = ObjectStore::ensure_bucket(
        client,
        &bucket,
        settings.replicas.into(),
        settings.max_bytes,
    );
    let objects = objects.map_err(failed)?;
    Ok(NatsBucket { objects, address })
}

impl NatsBucket {
    fn failed(&self, doing: &str, name: &str, cause: &StreamError) -> StoreError {
        StoreError::failed(&self.address, format_args!("{doing} {name}"), cause)
    }
}

impl Store for NatsBucket {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, _size: u64, from: &mut dyn Read) -> Result<()> {
        let result = self.objects.put(name, from);
        result.map_err(|cause| self.failed("put", name, &cause))
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        match self.objects.get(name, into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::not_found(&self.address, name)),
            Err(ObjectError::Damaged(cause)) => Err(StoreError::Damaged {
                store: self.address.clone(),
                name: name.to_string(),
                cause,
            }),
            Err(ObjectError::Stream(cause)) => Err(self.failed("get", name, &cause)),
        }
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let names = self.objects.list();
        names.map_err(|cause| StoreError::failed(&self.address, "list", cause))
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let result = self.objects.remove(name);
        result.map_err(|cause| self.failed("remove", name, &cause))
    }
}
