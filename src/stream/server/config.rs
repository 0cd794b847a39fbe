//! The configuration that the supervised nats-server runs with.
//!
//! Generated settings come first and the operator's file is included last: of two equal keys the
//! later one counts, and whole blocks are replaced. Only the client address is passed by flags,
//! which take precedence over both. The file holds a password, so only its owner can read it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sections::{self, quote, split_host_port};
use crate::db_file::access::FileAccess;

use super::{DOMAIN, ServerError, ServerOptions, user_config};

/// How long an acknowledged message may stay in memory only, where a power cut loses it.
///
/// `always` costs one fsync per batch: 5,000 messages/s instead of 120,000, and a worn-out flash.
/// With the server's default of two minutes, nodes would have to send much again. Messages lost
/// within ten seconds are detected by their missing sequences, and the nodes that have them send
/// them again. nats-server 2.9 has no such setting and stays at two minutes.
const SYNC_INTERVAL: &str = "10s";

pub(super) struct ServerConfig {
    options: ServerOptions,
    run_dir: PathBuf,
    host: String,
    port: String,
    /// Login for clients, unless the operator's file defines logins.
    user: Option<(String, String)>,
    /// The operator's file defines logins.
    users_given: bool,
    /// The operator's file has a `cluster` block.
    cluster_given: bool,
    /// Settings that some servers or some operators' files do not accept (see `probe`).
    sync_interval: bool,
    store_dir: bool,
}

impl ServerConfig {
    pub(super) fn new(
        options: &ServerOptions,
        run_dir: &Path,
    ) -> Result<ServerConfig, ServerError> {
        let (host, port) = split_host_port(&options.bind_address).map_err(ServerError::Config)?;
        let given = match &options.user_config {
            None => BTreeSet::new(),
            Some(file) => {
                user_config::top_level_keys(file).map_err(ServerError::io("read", file))?
            }
        };
        let users_given = ["authorization", "accounts", "operator"]
            .iter()
            .any(|key| given.contains(*key));
        let user = match &options.user {
            Some(user) => Some(user.clone()),
            None if users_given => None,
            None => Some(("harmonylite".to_string(), random_password()?)),
        };
        if options.cluster_addr.is_none() && !options.peers.is_empty() {
            let text = "cluster peers are given, but no cluster address to listen on for them";
            return Err(ServerError::Config(text.into()));
        }
        if let Some(listen) = options
            .cluster_addr
            .as_ref()
            .filter(|_| !given.contains("cluster"))
        {
            sections::require_closed(options, listen)?;
        }
        let (options, run_dir) = (options.clone(), run_dir.to_path_buf());
        let (sync_interval, store_dir) = (true, true);
        Ok(ServerConfig {
            options,
            run_dir,
            host,
            port,
            user,
            users_given,
            cluster_given: given.contains("cluster"),
            sync_interval,
            store_dir,
        })
    }

    /// Whether the server uses its store without any other server.
    pub(super) fn is_alone(&self) -> bool {
        self.options.cluster_addr.is_none() && !self.cluster_given && !self.is_leaf()
    }

    fn is_leaf(&self) -> bool {
        !self.options.leaf_servers.is_empty() && self.options.cluster_addr.is_none()
    }

    /// The login that clients use.
    pub(super) fn user(&self) -> Option<(String, String)> {
        self.user.clone()
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let (conf, run_dir) = (
            self.path().display().to_string(),
            self.run_dir.display().to_string(),
        );
        let arguments = [
            "-c",
            &conf,
            "-a",
            &self.host,
            "-p",
            &self.port,
            "--ports_file_dir",
            &run_dir,
        ];
        arguments.map(String::from).to_vec()
    }

    fn path(&self) -> PathBuf {
        self.run_dir.join("nats.conf")
    }

    /// Writes the file, with `routes` to the other servers of the cluster.
    pub(super) fn write(&self, routes: &[String]) -> Result<(), ServerError> {
        let path = self.path();
        let text = self.text(routes)?;
        let written = FileAccess::OURS
            .replace(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(ServerError::io("write", &path))
    }

    /// Lets the server check the file, and removes settings that this server or the operator's file
    /// does not accept. Any other complaint returns `Config`: the operator must fix it.
    pub(super) fn probe(&mut self, binary: &Path, routes: &[String]) -> Result<(), ServerError> {
        loop {
            let mut command = Command::new(binary);
            command
                .arg("-t")
                .args(self.arguments())
                .stdin(super::child::null()?);
            let output = command.output().map_err(ServerError::io("run", binary))?;
            if output.status.success() {
                return Ok(());
            }
            if output.status.code().is_none() {
                // A signal ended it, for example when memory ran out or all servers were stopped.
                // That says nothing about the configuration.
                let text = format!("while it read its configuration: {}", output.status);
                return Err(ServerError::Failed(text));
            }
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_string();
            if self.sync_interval && complaint.contains("sync_interval") {
                self.sync_interval = false;
            } else if self.store_dir && complaint.contains("Duplicate 'store_dir'") {
                self.store_dir = false;
            } else {
                return Err(ServerError::Config(complaint));
            }
            self.write(routes)?;
        }
    }

    fn text(&self, routes: &[String]) -> Result<String, ServerError> {
        let mut lines = vec![
            format!("server_name: {}", quote(&self.options.node_name)?),
            "logtime: false".to_string(),
        ];
        // A leaf has no streams of its own: it sends requests for them to the hub, using the hub's
        // domain.
        if self.is_leaf() {
            lines.push("jetstream: disabled".to_string());
            lines.push(format!("default_js_domain {{ $G: {DOMAIN} }}"));
        } else {
            let interval = self
                .sync_interval
                .then(|| format!(", sync_interval: {SYNC_INTERVAL:?}"));
            let limit = self.options.max_bytes;
            let limit = limit.map(|bytes| format!(", max_file_store: {bytes}"));
            let (interval, limit) = (interval.unwrap_or_default(), limit.unwrap_or_default());
            lines.push(format!("jetstream {{ domain: {DOMAIN}{interval}{limit} }}"));
        }
        if self.store_dir {
            // Outside `jetstream {}`, so that an operator's `jetstream {}` without a store keeps
            // it.
            let store = std::path::absolute(&self.options.store_dir);
            let store = store.map_err(ServerError::io("find", &self.options.store_dir))?;
            lines.push(format!("store_dir: {}", quote(&store.to_string_lossy())?));
        }
        if let (Some((user, password)), false) = (&self.user, self.users_given) {
            let (user, password) = (quote(user)?, quote(password)?);
            lines.push(format!(
                "authorization {{ user: {user}, password: {password} }}"
            ));
        }
        if let Some(address) = &self.options.cluster_addr {
            lines.push(sections::cluster(&self.options, address, routes)?);
        }
        if !self.options.leaf_servers.is_empty() {
            lines.push(sections::leaf(&self.options.leaf_servers)?);
        }
        if let Some(file) = &self.options.user_config {
            lines.push(format!("include {}", quote(&self.relative(file)?)?));
        }
        lines.push(String::new());
        Ok(lines.join("\n"))
    }

    /// The server resolves an include only relative to the including file.
    fn relative(&self, file: &Path) -> Result<String, ServerError> {
        let here =
            fs::canonicalize(&self.run_dir).map_err(ServerError::io("find", &self.run_dir))?;
        let there = fs::canonicalize(file).map_err(ServerError::io("find", file))?;
        let up = "../".repeat(here.components().count() - 1);
        Ok(format!(
            "{up}{}",
            there.to_string_lossy().trim_start_matches('/')
        ))
    }
}

fn random_password() -> Result<String, ServerError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = fs::File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(ServerError::io("read", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_peers_routes_to_itself_and_secrets_are_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let options = ServerOptions {
            node_name: "n1".into(),
            store_dir: "/data/nats/n1".into(),
            bind_address: "127.0.0.1:-1".into(),
            user: Some(("me".into(), "a\"b\\c".into())),
            cluster_addr: Some("0.0.0.0:6222".into()),
            is_insecure: true,
            leaf_servers: vec!["nats://u:p%20w@hub/?hub=true".into()],
            ..ServerOptions::default()
        };
        let text = ServerConfig::new(&options, folder.path())
            .unwrap()
            .text(&[])
            .unwrap();
        assert!(
            text.contains(r#"routes: [ "nats://127.0.0.1:6222" ]"#),
            "{text}"
        );
        assert!(text.contains(r#"password: "a\"b\\c""#), "{text}");
        let leaf = r#"remotes: [ { urls: [ "nats-leaf://u:p%20w@hub:7422" ], hub: true } ]"#;
        assert!(text.contains(leaf), "{text}");
    }

    #[test]
    fn a_cluster_is_open_only_if_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let made = |address: &str, change: &dyn Fn(&mut ServerOptions)| {
            let mut options = ServerOptions {
                node_name: "n1".into(),
                store_dir: "/data/nats/n1".into(),
                bind_address: "127.0.0.1:-1".into(),
                cluster_addr: Some(address.into()),
                peers: vec!["nats://10.0.0.2:4221/".into()],
                ..ServerOptions::default()
            };
            change(&mut options);
            ServerConfig::new(&options, folder.path()).and_then(|config| config.text(&[]))
        };
        for open in ["10.0.0.1:4221", "0.0.0.0:4221", "[::]:4221", "box.lan:4221"] {
            let refused = made(open, &|_| {}).unwrap_err().to_string();
            assert!(refused.contains("nats.cluster.password_file"), "{refused}");
            made(open, &|o| o.is_insecure = true).unwrap();
            made(open, &|o| {
                o.peers = vec!["nats://u:p@10.0.0.2:4221/".into()]
            })
            .unwrap();
            let login = Some(("route".into(), "s\"ecret".into()));
            let text = made(open, &|o| o.route_login = login.clone()).unwrap();
            let says = r#"authorization { user: "route", password: "s\"ecret", timeout: 2 }"#;
            assert!(text.contains(says), "{text}");
            let files = ["/ca.pem", "/cert.pem", "/key.pem"].map(Into::into);
            let text = made(open, &|o| o.route_tls = Some(files.clone())).unwrap();
            assert!(
                text.contains(r#"ca_file: "/ca.pem", cert_file: "/cert.pem""#),
                "{text}"
            );
        }
        for own in ["127.0.0.1:4221", "localhost:4221", "[::1]:4221"] {
            made(own, &|_| {}).unwrap();
        }
    }
}
