//! Nodes (a daemon and an application each, on a database) and the broker between them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::record::Record;
use crate::{Result, app};

/// The settings that all nodes share, and the nodes.
pub struct Cluster {
    pub folder: PathBuf,
    pub seed: u64,
    pub nodes: Vec<Node>,
    pub broker: Option<Process>,
    /// Where the broker keeps its data.
    pub store: PathBuf,
    pub address: (String, u16),
    /// Milliseconds between two transactions of an application, at most.
    pub pause: u64,
    starts: u64,
}

pub struct Node {
    pub id: u64,
    pub folder: PathBuf,
    /// The record lies on a disk that never loses power.
    pub record: PathBuf,
    pub log: PathBuf,
    /// The command that starts the daemon (and the application): it sets a network or a limit.
    pub daemon_prefix: Vec<String>,
    pub app_prefix: Vec<String>,
    /// `PRAGMA synchronous` of the application.
    pub sync: String,
    /// Whether its disk gets into trouble, so that errors do not end the application.
    pub endures: bool,
    /// Whether its daemon runs the broker.
    pub embedded: bool,
    pub max_entries: u64,
    pub daemon: Option<Process>,
    pub app: Option<Process>,
}

impl Node {
    pub fn db(&self) -> PathBuf {
        self.folder.join("app.db")
    }

    pub fn records(&self) -> Result<Record> {
        Record::read(self.id, &self.record)
    }
}

fn words(prefix: &[String], program: &Path, arguments: &[String]) -> Vec<String> {
    let mut words = prefix.to_vec();
    words.push(program.display().to_string());
    words.extend_from_slice(arguments);
    words
}

/// A port that the system gives to no process by itself: it stays free while the broker is down.
/// Programs that run at the same time begin their search at different ports.
pub fn free_port() -> Result<u16> {
    let from = 10_000 + (std::process::id() % 9_900) as u16;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    Ok((from..from + 100).find(is_free).ok_or("no port is free")?)
}

/// The program under test, which lies beside this program's folder.
fn harmonylite() -> Result<PathBuf> {
    match std::env::var_os("HARMONYLITE") {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?
            .with_file_name("../harmonylite")
            .canonicalize()?),
    }
}

fn nats_server() -> String {
    std::env::var("HARMONYLITE_NATS_SERVER").unwrap_or_else(|_| "nats-server".into())
}

impl Cluster {
    pub fn new(folder: &Path, seed: u64, nodes: u64) -> Result<Cluster> {
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let node = |id: u64| Node {
            id,
            folder: folder.join(format!("node-{id}")),
            record: folder.join(format!("record-{id}")),
            log: folder.join(format!("log-{id}")),
            daemon_prefix: Vec::new(),
            app_prefix: Vec::new(),
            sync: "NORMAL".into(),
            endures: false,
            embedded: false,
            max_entries: 10_000_000,
            daemon: None,
            app: None,
        };
        Ok(Cluster {
            store: folder.join("broker"),
            address: ("127.0.0.1".into(), free_port()?),
            nodes: (1..=nodes).map(node).collect(),
            broker: None,
            seed,
            pause: 4,
            starts: 0,
            folder,
        })
    }

    pub fn start_broker(&mut self) -> Result<()> {
        let (host, port) = &self.address;
        let arguments = ["-a", host, "-p", &port.to_string(), "-js", "-sd"];
        let mut arguments: Vec<String> = arguments.map(String::from).to_vec();
        arguments.push(self.store.display().to_string());
        let words = words(&[], nats_server().as_ref(), &arguments);
        let log = self.folder.join("log-broker");
        self.broker = Some(Process::spawn("nats-server", &words, &log)?);
        Ok(())
    }

    pub fn start_daemon(&mut self, index: usize) -> Result<()> {
        let (host, port) = self.address.clone();
        let node = &mut self.nodes[index];
        fs::create_dir_all(&node.folder)?;
        let nats = if node.embedded {
            let server = nats_server();
            format!("bind_address = \"{host}:{port}\"\nserver_binary = {server:?}")
        } else {
            format!("urls = [\"nats://{host}:{port}\"]")
        };
        let config = node.folder.join("config.toml");
        let text = format!(
            "db_path = {:?}\nnode_id = {}\ncleanup_interval = 500\n\
             [replication_log]\nmax_entries = {}\n\
             [nats]\n{nats}\nuser_name = \"torture\"\nuser_password = \"torture\"\n\
             reconnect_wait_seconds = 1\n",
            node.db(),
            node.id,
            node.max_entries
        );
        fs::write(&config, text)?;
        let arguments = ["-config".to_owned(), config.display().to_string()];
        let words = words(&node.daemon_prefix, &harmonylite()?, &arguments);
        let name = format!("daemon {}", node.id);
        node.daemon = Some(Process::spawn(&name, &words, &node.log)?);
        Ok(())
    }

    /// Each start goes on with different random numbers.
    pub fn start_app(&mut self, index: usize) -> Result<()> {
        self.starts += 1;
        let seed = self.seed.wrapping_add(self.starts << 32);
        let node = &mut self.nodes[index];
        let pairs = [
            ("--db", node.db().display().to_string()),
            ("--record", node.record.display().to_string()),
            ("--writer", node.id.to_string()),
            ("--seed", seed.to_string()),
            ("--pause", self.pause.to_string()),
            ("--sync", node.sync.clone()),
        ];
        let pairs = pairs.into_iter().flat_map(|(k, v)| [k.to_owned(), v]);
        let endures = node.endures.then(|| "--endures".to_owned());
        let app = std::iter::once("app".to_owned());
        let arguments: Vec<String> = app.chain(pairs).chain(endures).collect();
        let words = words(&node.app_prefix, &std::env::current_exe()?, &arguments);
        let name = format!("application {}", node.id);
        let log = node.log.with_extension("app");
        node.app = Some(Process::spawn(&name, &words, &log)?);
        Ok(())
    }

    /// Starts all daemons and the broker, on databases with the application's tables.
    pub fn start(&mut self) -> Result<()> {
        if !self.nodes.iter().any(|n| n.embedded) {
            self.start_broker()?;
        }
        for index in 0..self.nodes.len() {
            fs::create_dir_all(&self.nodes[index].folder)?;
            app::prepare(&self.nodes[index].db())?;
            self.start_daemon(index)?;
        }
        // Rows from before the triggers would not be in any record.
        let until = Instant::now() + Duration::from_secs(30);
        while !self.nodes.iter().all(|n| is_installed(&n.db())) {
            if Instant::now() > until {
                return Err("the daemons do not install their triggers".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn start_apps(&mut self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|index| self.start_app(index))
    }

    pub fn kill_apps(&mut self) -> Result<()> {
        let mut apps = self.nodes.iter_mut().filter_map(|n| n.app.take());
        apps.try_for_each(Process::kill)
    }

    pub fn all_alive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            let processes = [&mut node.daemon, &mut node.app];
            for process in processes.into_iter().flatten() {
                process.must_run()?;
            }
        }
        Ok(())
    }

    /// Begins the records anew.
    pub fn forget_records(&self) {
        for node in &self.nodes {
            let _ = fs::remove_file(&node.record);
        }
    }
}

fn is_installed(db: &Path) -> bool {
    let tables = |conn: rusqlite::Connection| {
        conn.query_row(
            "SELECT count(DISTINCT tbl_name) FROM sqlite_schema
             WHERE type = 'trigger' AND name GLOB '__harmonylite__*'",
            [],
            |r| r.get::<_, usize>(0),
        )
    };
    let tables = crate::check::open(db).and_then(|conn| Ok(tables(conn)?));
    tables.is_ok_and(|count| count >= crate::schema::TABLES.len())
}
