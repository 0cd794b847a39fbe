//! Remembers in the store of our own nats-server with which servers it formed a cluster last.
//!
//! If the store of a clustered server is opened alone, the cluster's streams are lost: the lone
//! server makes new streams of the same names, and every node publishes all its rows again once it
//! has rejoined the others. So a run without any of the flags (`-save-snapshot` by hand, a unit
//! file that lacks them) uses the remembered ones.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::net::peer_url;
use crate::cli::{self, Command, Flags, Peer};

/// The file of the flags, written as on the command line, one a line. It may hold passwords.
fn file_in(store: &Path) -> PathBuf {
    store.join("cluster.flags")
}

/// Returns `options`, with the remembered servers if it names none. If it names some, remembers
/// them.
pub(super) fn complete(options: &Flags, store: &Path) -> Flags {
    let file = file_in(store);
    let mut complete = options.clone();
    if names_servers(options) {
        if let Err(e) = remember(options, &file) {
            log::warn!(
                "{}: {e}: a run without the flags of the cluster would not join it",
                file.display()
            );
        }
    } else if let Some(known) = recall(&file) {
        log::warn!(
            "no flag names servers of other nodes: this node joins those of the last start, {} \
             (flags in {}; delete that file to run alone)",
            described(&known),
            file.display()
        );
        complete.cluster_addr = known.cluster_addr;
        complete.cluster_peers = known.cluster_peers;
        complete.leaf_servers = known.leaf_servers;
        complete.insecure_cluster |= known.insecure_cluster;
    }
    complete
}

fn names_servers(options: &Flags) -> bool {
    let peers = options.cluster_peers.iter().chain(&options.leaf_servers);
    options.cluster_addr.is_some() || peers.count() > 0
}

fn remember(options: &Flags, file: &Path) -> io::Result<()> {
    let list = |peers: &[Peer]| peers.iter().map(peer_url).collect::<Vec<_>>().join(",");
    let own = options.cluster_addr.as_ref();
    let text: String = [
        (
            "-cluster-addr",
            own.map_or(String::new(), |a| a.to_string()),
        ),
        ("-cluster-peers", list(&options.cluster_peers)),
        ("-leaf-servers", list(&options.leaf_servers)),
    ]
    .iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(flag, value)| format!("{flag} {value}\n"))
    .chain(
        options
            .insecure_cluster
            .then(|| "-insecure-cluster\n".to_owned()),
    )
    .collect();
    if fs::read_to_string(file).is_ok_and(|known| known == text) {
        return Ok(());
    }
    if let Some(store) = file.parent() {
        fs::create_dir_all(store)?;
    }
    let new = file.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(new, file)
}

fn recall(file: &Path) -> Option<Flags> {
    let text = fs::read_to_string(file).ok()?;
    match cli::parse(text.split_whitespace().map(OsString::from)) {
        Ok(Command::Run(options)) if names_servers(&options) => Some(options),
        _ => {
            log::warn!("{} is not readable, and is ignored", file.display());
            None
        }
    }
}

/// The servers, without their logins.
fn described(options: &Flags) -> String {
    let peers = options.cluster_peers.iter().chain(&options.leaf_servers);
    let peers = peers.map(|peer| match peer {
        Peer::Direct(url) => url.to_string(),
        Peer::Dns { host, port, .. } => format!("dns://{host}:{port}"),
    });
    let own = options.cluster_addr.iter().map(ToString::to_string);
    own.chain(peers).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Flags {
        match cli::parse(words.iter().map(OsString::from)) {
            Ok(Command::Run(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn servers_are_remembered_until_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("nats/harmonylite-node-1");
        let (none, cluster) = (
            options(&["-node-id", "7"]),
            options(&[
                "-cluster-addr",
                "127.0.0.1:4221",
                "-cluster-peers",
                "nats://u:p%40ss@h:1/,dns://n:2/?min=4&interval_ms=50",
            ]),
        );
        assert_eq!(complete(&none, &store), none, "it is alone");
        assert!(!store.exists());
        assert_eq!(complete(&cluster, &store), cluster);
        let again = complete(&none, &store);
        assert_eq!(again.cluster_addr, cluster.cluster_addr);
        assert_eq!(again.cluster_peers, cluster.cluster_peers);
        assert_eq!(again.node_id, Some(7));
        assert!(!described(&again).contains("p%40ss"));
        let leaf = options(&["-leaf-servers", "nats://hub:7422"]);
        assert_eq!(complete(&leaf, &store), leaf);
        let again = complete(&none, &store);
        assert_eq!(
            (again.cluster_addr, again.leaf_servers),
            (None, leaf.leaf_servers)
        );
        fs::write(file_in(&store), "-leaf-servers").unwrap();
        assert_eq!(complete(&none, &store), none, "cut short");
    }
}
