//! Limits of the broker's account: sizes for streams if it requires them, and advice to a person
//! when a limit is exceeded.

use serde_json::Value;

use super::StreamError;
use super::client::Client;
use super::jetstream::code;

/// Bytes per message when a size is calculated from a number of messages. Larger frames travel in
/// several messages.
pub(crate) const MESSAGE_BYTES: u64 = 100 * 1024;

/// Advice about an error of the JetStream API; empty if the error's text is sufficient.
pub(super) fn advice(err_code: u32, description: &str) -> &'static str {
    match err_code {
        code::SIZE_WANTED => {
            "; set replication_log.max_bytes, and snapshot.nats.max_bytes for snapshots"
        }
        code::SIZE_TOO_LARGE => {
            "; the account limits one stream (disk_max_stream_bytes): lower \
             replication_log.max_bytes or snapshot.nats.max_bytes, or have that limit raised"
        }
        10002 | 10023 | 10047 => {
            "; the storage of the account (max_file) or of the server is used up or reserved: \
             lower replication_log.max_bytes or snapshot.nats.max_bytes, or have it raised"
        }
        10026 => {
            "; the account has all the consumers that it may (max_consumers): each node needs one \
             per shard and one more at times: have that limit raised"
        }
        10027 => {
            "; the account has all the streams that it may (max_streams): needed are one per \
             shard, two for keys and, while snapshot.store is \"nats\", one for snapshots: have \
             that limit raised, or delete streams that nobody uses"
        }
        10035 | 10039 => "; enable JetStream for this account",
        _ if description.contains("maximum bytes exceeded") => {
            "; the stream is full: have its max_bytes raised (of snapshots, \
             snapshot.nats.max_bytes)"
        }
        _ => "",
    }
}

/// Size in bytes of a stream for an account that requires one: `bytes`, but at most the account's
/// limit per stream, and at most half of the account's free storage divided by `replicas`.
pub(super) fn size_within(client: &Client, bytes: u64, replicas: u64) -> Result<u64, StreamError> {
    // If the account may not read its limits, `bytes` is used; the server's next answer names what
    // does not fit.
    let info = client.api("INFO", &Value::Null)?.unwrap_or_default();
    Ok(fit(&info, bytes, replicas))
}

fn fit(info: &Value, bytes: u64, replicas: u64) -> u64 {
    // Values of -1 and 0 mean no limit.
    let limit = |key: &str| info["limits"][key].as_u64().filter(|&limit| limit > 0);
    let taken = ["reserved_storage", "storage"].map(|key| info[key].as_u64().unwrap_or(0));
    let taken = taken[0].max(taken[1]);
    let free = limit("max_storage").map(|all| all.saturating_sub(taken) / replicas.max(1) / 2);
    [Some(bytes), limit("storage_max_stream_bytes"), free]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(bytes)
        .max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_size_fits_into_what_the_account_has_left() {
        let none = json!({ "limits": { "max_storage": -1, "storage_max_stream_bytes": -1 } });
        assert_eq!(fit(&none, 1000, 3), 1000);
        assert_eq!(fit(&json!(null), 1000, 1), 1000);
        let limits = json!({ "max_storage": 4000, "storage_max_stream_bytes": 900 });
        let mut info = json!({ "limits": limits, "reserved_storage": 1000, "storage": 10 });
        assert_eq!(fit(&info, 1000, 1), 900);
        assert_eq!(fit(&info, 1000, 3), 500);
        assert_eq!(fit(&info, 100, 3), 100);
        info["storage"] = json!(5000);
        assert_eq!(fit(&info, 100, 1), 1);
    }
}
