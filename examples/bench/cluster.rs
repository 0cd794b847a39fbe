//! A real nats-server and two daemons beside it, in a directory that goes away with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::app::App;
use crate::process::Process;

pub struct Node {
    pub daemon: Process,
    pub db: PathBuf,
}

pub struct Cluster {
    // The daemons end in this order.
    pub nodes: Vec<Node>,
    server: Process,
    /// HOST:PORT of the nats-server.
    pub address: String,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts the cluster, and waits until a row has gone both ways.
    pub fn start() -> Result<Cluster> {
        Cluster::start_with("")
    }

    /// The same; `first` begins the configuration of each node.
    pub fn start_with(first: &str) -> Result<Cluster> {
        let dir = directory()?;
        let (server, address) = start_server(dir.path())?;
        let nodes = (1..=2)
            .map(|id| start_node(dir.path(), id, &address, first))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Cluster {
            nodes,
            server,
            address,
            dir,
        };
        let mut apps = [cluster.app(0)?, cluster.app(1)?];
        for (from, to) in [(0, 1), (1, 0)] {
            let id = apps[from].next_id()?;
            apps[from].insert(id, 1)?;
            apps[to].wait_for(id)?;
        }
        Ok(cluster)
    }

    /// An application on one of the nodes.
    pub fn app(&self, node: usize) -> Result<App> {
        App::open(&self.nodes[node].db)
    }

    /// Waits until both daemons have finished their work: 100 ms without CPU time.
    pub fn settle(&self) -> Result<()> {
        let cpu = || -> Result<u64> {
            let each = self.nodes.iter();
            each.map(|n| Ok(n.daemon.activity()?.cpu_ns())).sum()
        };
        let began = Instant::now();
        let mut before = cpu()?;
        while began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(100));
            let now = cpu()?;
            if now.abs_diff(before) < 200_000 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Memory of the larger daemon.
    pub fn rss_mb(&self) -> Result<f64> {
        self.nodes
            .iter()
            .try_fold(0.0_f64, |most, n| Ok(most.max(n.daemon.rss_mb()?)))
    }

    pub fn stop(self) -> Result<()> {
        for node in self.nodes {
            node.daemon.stop()?;
        }
        self.server.stop()?;
        Ok(self.dir.close()?)
    }
}

/// A folder below the build's directory, which is on a disk: /tmp may be in memory.
pub fn directory() -> Result<tempfile::TempDir> {
    let target = binary("harmonylite")?;
    let target = target.parent().ok_or("no directory of the build")?;
    Ok(tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(target)?)
}

/// A program of the same build.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let release = this.ancestors().nth(2).ok_or("no directory of the build")?;
    Ok(release.join(name))
}

pub fn server_program() -> std::ffi::OsString {
    std::env::var_os("HARMONYLITE_NATS_SERVER").unwrap_or("nats-server".into())
}

pub fn start_server(dir: &Path) -> Result<(Process, String)> {
    let program = server_program();
    let (store, ports) = (dir.join("nats"), dir.join("ports"));
    fs::create_dir_all(&ports)?;
    // The server gives the file this name.
    let name = Path::new(&program).file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"]);
    command.arg(store).arg("--ports_file_dir").arg(&ports);
    let mut server = Process::spawn(command.stderr(Stdio::null()).stdout(Stdio::null()))?;
    let file = ports.join(format!("{name}_{}.ports", server.id()));
    loop {
        let text = fs::read(&file).unwrap_or_default();
        if let Ok(ports) = serde_json::from_slice::<serde_json::Value>(&text) {
            let url = ports["nats"][0].as_str().unwrap_or_default();
            let address = url.trim_start_matches("nats://").to_owned();
            return Ok((server, address));
        }
        if !server.is_running() {
            return Err("nats-server ended at once".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start_node(dir: &Path, id: u32, address: &str, first: &str) -> Result<Node> {
    let home = dir.join(format!("node-{id}"));
    fs::create_dir_all(&home)?;
    let db = home.join("app.db");
    App::open(&db)?;
    let daemon = start_daemon(&db, id, address, (first, ""))?;
    Ok(Node { daemon, db })
}

/// A daemon for a database, with `log` and `config.toml` beside that. `more` is what stands at the
/// beginning of the configuration and at its end.
pub fn start_daemon(
    db: &Path,
    id: u32,
    address: &str,
    (first, last): (&str, &str),
) -> Result<Process> {
    let (config, log) = (db.with_file_name("config.toml"), db.with_file_name("log"));
    let text = format!(
        "db_path = \"{}\"\nnode_id = {id}\n{first}[replication_log]\nmax_entries = 1000000\n\
         [nats]\nurls = [\"nats://{address}\"]\n{last}",
        db.display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new(binary("harmonylite")?);
    command.arg("-config").arg(&config);
    let output = fs::File::create(&log)?;
    command.stdout(output.try_clone()?).stderr(output);
    let mut daemon = Process::spawn(&mut command)?;
    std::thread::sleep(Duration::from_millis(20));
    if !daemon.is_running() {
        let text = fs::read_to_string(&log)?;
        return Err(format!("the daemon ended: {text}").into());
    }
    Ok(daemon)
}
