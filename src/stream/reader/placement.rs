//! The server on which a consumer runs.
//!
//! The leader of a stream sends its messages to the stream's other servers. A server that has just
//! started lags behind for seconds. A consumer that the broker placed on it lags too, also for
//! nodes that are connected to other servers.

use serde_json::Value;

/// Whether the consumer's server lags behind, according to the stream's leader. `consumer` and
/// `stream` are answers of the API; a server outside a cluster names no leader in them.
pub(super) fn lags(consumer: &Value, stream: &Value) -> bool {
    let Some(host) = consumer["cluster"]["leader"].as_str() else {
        return false;
    };
    let replicas = stream["cluster"]["replicas"].as_array();
    let of_host = |replica: &&Value| replica["name"] == host;
    let replica = replicas.into_iter().flatten().find(of_host);
    replica.is_some_and(|replica| replica["current"] == false || replica["offline"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_replica_that_is_behind_lags() {
        let stream = json!({ "cluster": { "leader": "a", "replicas": [
            { "name": "b", "current": true },
            { "name": "c", "current": false, "lag": 2 },
            { "name": "d", "current": true, "offline": true },
        ] } });
        for (host, expected) in [("a", false), ("b", false), ("c", true), ("d", true)] {
            let consumer = json!({ "cluster": { "leader": host } });
            assert_eq!(lags(&consumer, &stream), expected, "{host}");
        }
        assert!(!lags(&json!({}), &json!({})));
    }
}
