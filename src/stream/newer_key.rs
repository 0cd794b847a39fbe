//! Whether the cluster has a newer key than a node.
//!
//! A node with a newer key tells its number under a key of the bucket of shared values, which the
//! older key seals. So a node that has the older key alone knows that what it cannot open is not
//! forged.

use super::StreamError;
use super::client::Client;
use super::key_value::KeyValue;
use crate::seal::{ClusterKey, Seal};

/// Prefix of a key: the number of an older cluster key follows, which seals the number of a newer
/// one.
pub const NEWER: &str = "newer.";

/// Lets the newest key seal that the cluster tells of. Fails with `Refused` if the file of this
/// node lacks it: what cannot be opened waits for the operator.
pub fn follow(bucket: &KeyValue<'_>, seal: &Seal) -> Result<(), StreamError> {
    for _ in seal.keys() {
        let Some(own) = seal.key() else { break };
        let Some(newer) = told(bucket, own)? else {
            break;
        };
        if !seal.seal_with(&newer) {
            seal.fall_behind();
            return Err(StreamError::Refused(format!(
                "the cluster has a newer key ({newer}) than those in cluster_key_file: copy the \
                 file of the other nodes, and start this node again"
            )));
        }
        log::info!("the cluster seals with a newer key: {newer}");
    }
    Ok(())
}

/// Looks whether an unknown key may be a newer one: then it fails as [`follow`] does.
pub(super) fn look(client: &Client, seal: &Seal) -> Result<(), StreamError> {
    match client.meta_bucket() {
        "" => Ok(()),
        bucket => follow(&KeyValue::open(client, bucket), seal),
    }
}

/// The number of the key that follows `key`; none if nothing tells of one.
pub fn told(bucket: &KeyValue<'_>, key: &ClusterKey) -> Result<Option<String>, StreamError> {
    let name = format!("{NEWER}{}", key.id_text());
    let value = bucket.opened_by(key, &name)?;
    Ok(value.and_then(|value| String::from_utf8(value).ok()))
}
