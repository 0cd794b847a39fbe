//! A node: a folder with a database, a configuration and, while it runs, the daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use crate::wait::{PATIENCE, free_port, pause, until};

pub struct Node {
    pub folder: TempDir,
    /// Keys of config.toml, with values as TOML.
    settings: BTreeMap<String, String>,
    /// Further arguments.
    pub words: Vec<String>,
    /// Further environment variables, name and value.
    pub environment: Vec<(String, String)>,
    process: Option<Child>,
    /// The user that the daemon is; none: that of the test.
    user: Option<u32>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let id = self.settings.get("node_id").map_or("?", String::as_str);
            eprintln!("--- log of {id}:\n{}", self.log());
        }
    }
}

impl Node {
    /// A node without tables, not started. Its pauses are short, so that tests are.
    pub fn new(id: u64) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let mut node = Node {
            folder,
            settings: BTreeMap::new(),
            words: Vec::new(),
            environment: Vec::new(),
            process: None,
            user: None,
        };
        let database = format!("'{}'", node.database().display());
        let server = crate::stream::node::binary();
        node.set("db_path", &database)
            .set("node_id", &id.to_string())
            .set("cleanup_interval", "100")
            .set("nats.reconnect_wait_seconds", "1")
            .set("nats.server_binary", &format!("'{}'", server.display()));
        node.execute("PRAGMA journal_mode = WAL");
        node
    }

    /// Sets a key of the configuration, from the next start on.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Node {
        self.settings.insert(key.into(), value.into());
        let text: String = self
            .settings
            .iter()
            .map(|(k, v)| format!("{k} = {v}\n"))
            .collect();
        fs::write(self.file("config.toml"), text).unwrap();
        self
    }

    pub fn unset(&mut self, key: &str) {
        self.settings.remove(key);
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.file("app.db")
    }

    /// The program. `HARMONYLITE_EMULATED` gives a different command for nodes with odd ids, such
    /// as `qemu-arm -cpu arm1176 FILE`: then nodes of two architectures meet (`scripts/arm.sh`).
    fn program(&self) -> Command {
        if let Some(user) = self.user {
            let mut command = Command::new(self.file("harmonylite"));
            command.uid(user).gid(user);
            return command;
        }
        let own = env!("CARGO_BIN_EXE_harmonylite");
        let id = self.settings.get("node_id").and_then(|id| id.parse().ok());
        let emulated = std::env::var("HARMONYLITE_EMULATED");
        let words = emulated.unwrap_or_default();
        let mut words = words
            .split_whitespace()
            .filter(|_| id.is_some_and(|id: u64| id % 2 == 1));
        let mut command = Command::new(words.next().unwrap_or(own));
        command.args(words);
        command
    }

    /// The program with this node's configuration and further arguments.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program();
        command
            .arg("-config")
            .arg(self.file("config.toml"))
            .args(&self.words)
            .args(words);
        command
            .stdin(Stdio::null())
            .env("TMPDIR", self.folder.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// From now on the daemon is this user, to whom the folder and the database are given. The test
    /// must be root.
    pub fn run_as(&mut self, user: u32) {
        fs::copy(env!("CARGO_BIN_EXE_harmonylite"), self.file("harmonylite")).unwrap();
        for path in [self.folder.path(), &self.database()] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
        self.user = Some(user);
    }

    /// Runs the program to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = || {
            File::options()
                .create(true)
                .append(true)
                .open(self.file("log"))
                .unwrap()
        };
        let mut command = self.command(&[]);
        command.stdout(log()).stderr(log()).process_group(0);
        self.process = Some(command.spawn().unwrap());
    }

    pub fn start_all(nodes: &mut [Node]) {
        nodes.iter_mut().for_each(Node::start);
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, which: Signal) {
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), which).unwrap();
    }

    /// Kills the daemon, as a power cut would but for the disk's cache.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    /// Waits until the daemon has ended by itself or by a signal that was sent.
    pub fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        until("the daemon ends", || process.try_wait().unwrap())
    }

    /// Ends the daemon in good order. Returns how long that took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}");
        began.elapsed()
    }

    /// The daemon's output, on both streams, since its first start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("log")).unwrap_or_default()).into_owned()
    }

    pub fn until_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || {
            self.log().contains(text).then_some(())
        });
    }

    /// The application's connection.
    pub fn open(&self) -> Connection {
        let app = Connection::open(self.database()).unwrap();
        app.busy_timeout(Duration::from_secs(5)).unwrap();
        app
    }

    /// Runs statements as an application does.
    pub fn execute(&self, sql: &str) {
        self.open()
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub fn number(&self, sql: &str) -> i64 {
        self.open()
            .query_row(sql, [], |r| r.get(0))
            .unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// All rows of the application's tables, with their storage classes.
    pub fn rows(&self) -> Vec<String> {
        let app = self.open();
        // The transaction makes all tables those of one moment.
        app.execute_batch("BEGIN").unwrap();
        let mut all = Vec::new();
        for table in texts(
            &app,
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'
             AND name NOT GLOB '__harmonylite__*' ORDER BY name",
        ) {
            let columns = texts(
                &app,
                &format!("SELECT name FROM pragma_table_info('{table}')"),
            );
            let quoted: Vec<_> = columns.iter().map(|c| format!("quote(\"{c}\")")).collect();
            let text = format!("SELECT {} FROM \"{table}\"", quoted.join("||' '||"));
            let mut rows = texts(&app, &text);
            rows.sort_unstable();
            all.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
        }
        all
    }

    /// Whether nothing waits to be captured or sent.
    pub fn is_quiet(&self) -> bool {
        let left = "SELECT (SELECT count(*) FROM __harmonylite___change_log_global)
                         + (SELECT count(*) FROM __harmonylite___unsent)";
        self.open()
            .query_row(left, [], |r| r.get::<_, i64>(0))
            .is_ok_and(|n| n == 0)
    }

    /// Asserts that the file is sound and the log has no line that a healthy node never writes.
    pub fn check(&self) {
        let app = self.open();
        assert_eq!(texts(&app, "PRAGMA integrity_check"), ["ok"]);
        let log = self.log();
        for bad in ["panicked", "quarantine", "please report"] {
            assert!(!log.contains(bad), "{bad}");
        }
    }
}

pub fn texts(app: &Connection, sql: &str) -> Vec<String> {
    let mut statement = app.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let rows = statement.query_map([], |r| r.get(0)).unwrap();
    rows.collect::<Result<_, _>>()
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}
