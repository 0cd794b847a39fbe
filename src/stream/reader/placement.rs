//! On which server a consumer is.
//!
//! The servers that hold a stream get its messages from the one that leads it. One that was just
//! started lags behind for seconds, and so does a consumer that is on it by chance, also for nodes
//! that are connected elsewhere.

use serde_json::Value;

/// Whether the consumer's server lags behind, as the stream's leader sees it. `consumer` and
/// `stream` are what the API answers; a lone server's answers name no leader.
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
