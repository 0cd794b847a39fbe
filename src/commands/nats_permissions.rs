//! `harmonylite nats-permissions`: the rights that a node needs on a NATS server, and no others.

use std::io::Write;

use crate::cluster::broker::meta_bucket;
use crate::config::Config;
use crate::config::snapshot::StoreSettings;
use crate::daemon::net::stream_options;
use crate::output;
use crate::stream::jetstream::stream_name;

/// Keys of the bucket that belong to no node, and those of one node, without its number.
const SHARED_KEYS: [&str; 9] = [
    "settings",
    "founder",
    "snapshot",
    "snapshots",
    "wanted",
    "births",
    "verify",
    "newer.*",
    "open.until",
];
const OWN_KEYS: [&str; 4] = ["publisher-", "tables-", "node.", "digest."];
/// Those under which a node that only reads tells how it is doing.
const OWN_STATUS: [&str; 2] = ["node.", "digest."];

/// Writes the rights for this configuration, as a block of nats-server's configuration. With a
/// `node`, its login may write no key of a different node. A node with `publish = false` may change
/// nothing: it reads, and tells how it is doing unless `status_interval` is 0.
pub fn show(config: &Config, node: Option<u64>, out: &mut dyn Write) -> Result<(), String> {
    let list = |rights: Vec<String>| {
        let quoted = rights.iter().map(|right| format!("    {right:?}\n"));
        quoted.collect::<String>()
    };
    let text = format!(
        "permissions: {{\n  publish: {{ allow: [\n{}  ] }}\n  \
         subscribe: {{ allow: [\n{}  ] }}\n}}\n",
        list(publish(config, node)),
        list(subscribe(config)),
    );
    out.write_all(text.as_bytes()).map_err(output::failed)
}

fn subscribe(config: &Config) -> Vec<String> {
    let meta = meta_bucket(&config.common.stream_prefix);
    // A write in a different domain is told beside the bucket.
    let watched = match &config.nats.jetstream_domain {
        Some(_) => format!("{meta}.*"),
        None => format!("$KV.{meta}.*"),
    };
    vec!["_INBOX.>".into(), watched]
}

fn publish(config: &Config, node: Option<u64>) -> Vec<String> {
    let (common, domain) = (&config.common, config.nats.jetstream_domain.as_ref());
    let api = domain.map_or("$JS.API".into(), |domain| format!("$JS.{domain}.API"));
    // The prefix $KV does not cross domains.
    let key = |bucket: &str, key: &str| match domain {
        Some(_) => format!("{api}.$KV.{bucket}.{key}"),
        None => format!("$KV.{bucket}.{key}"),
    };
    let shards = || 1..=common.shards;
    let (meta, lease) = (
        meta_bucket(&common.stream_prefix),
        format!("{}-lease", common.stream_prefix),
    );
    let mut rights = Vec::new();
    if config.publish {
        rights.extend(shards().map(|shard| format!("{}-{shard}", common.subject_prefix)));
        match node {
            None => rights.push(key(&meta, ">")),
            Some(node) => {
                rights.extend(SHARED_KEYS.map(|name| key(&meta, name)));
                rights.extend(OWN_KEYS.map(|name| key(&meta, &format!("{name}{node}"))));
            }
        }
        rights.push(key(&lease, ">"));
        if domain.is_some() {
            rights.extend([format!("{meta}.>"), format!("{lease}.>")]);
        }
    } else if config.status_interval.is_some() {
        let of = node.map_or("*".to_owned(), |node| node.to_string());
        let own = OWN_STATUS.map(|name| format!("{name}{of}"));
        rights.extend(own.iter().map(|name| key(&meta, name)));
        if domain.is_some() {
            rights.extend(own.iter().map(|name| format!("{meta}.{name}")));
        }
    }
    let options = stream_options(config, 1);
    let mut read: Vec<String> = shards().map(|shard| stream_name(&options, shard)).collect();
    let mut kept = vec![format!("KV_{meta}"), format!("KV_{lease}")];
    if let StoreSettings::Nats(nats) = &config.snapshot.store {
        let default = || format!("{}-snapshot-store", common.stream_prefix);
        let bucket = nats.bucket.clone().unwrap_or_else(default);
        if config.publish {
            rights.push(format!("$O.{bucket}.>"));
            rights.push(format!("{api}.STREAM.PURGE.OBJ_{bucket}"));
        }
        read.push(format!("OBJ_{bucket}"));
    }
    for stream in &read {
        rights.push(format!("{api}.CONSUMER.CREATE.{stream}"));
        for call in ["MSG.NEXT", "DELETE"] {
            rights.push(format!("{api}.CONSUMER.{call}.{stream}.*"));
        }
    }
    kept.extend(read);
    for stream in &kept {
        for call in ["INFO", "MSG.GET"] {
            rights.push(format!("{api}.STREAM.{call}.{stream}"));
        }
    }
    if config.publish {
        rights.extend(
            kept.iter()
                .map(|stream| format!("{api}.STREAM.CREATE.{stream}")),
        );
    }
    rights.push("_INBOX.*.end".into());
    rights
}
