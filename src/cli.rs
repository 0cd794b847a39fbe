//! The command line: words in, a [`Command`] out. Reads no file and decides nothing.
//!
//! Flags keep the form of the Go implementation, `-config FILE` or `-config=FILE`, and may be
//! written with two dashes as well. A subcommand is a word that is no flag's value; flags stand
//! before or after it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use pico_args::Arguments;

use crate::address::configured::{ListenAddress, ServerUrl, redacted};
use crate::config::suggest::closest;

/// The text of `-help`: usage, commands, flags and examples.
pub const HELP: &str = "\
harmonylite keeps the SQLite databases of many machines the same, over NATS JetStream.

usage: harmonylite [flags]
       harmonylite conflicts [-json] [-config FILE]
       harmonylite held [-json] [-drop TABLE] [-config FILE]
       harmonylite inspect [-json] [-config FILE] [DATABASE]
       harmonylite snapshots [-json] [flags]
       harmonylite restore [-o FILE | -dry-run] [flags]
       harmonylite status [-json] [-config FILE]
       harmonylite schema status [-cluster] [-json] [-config FILE]
       harmonylite verify [-repair [-dry-run]] [-json] [-config FILE]
       harmonylite forget NODE [-dry-run] [-config FILE]
       harmonylite release [-dry-run] [-config FILE]
       harmonylite pause|resume [-json] [-config FILE]
       harmonylite diag [-o FILE] [-config FILE]
       harmonylite nats-permissions [-node N] [-config FILE]
       harmonylite key new FILE

  conflicts            show which rows are displaced because another row has their UNIQUE values
  held                 show which changes wait because they do not fit the tables here, and why
  inspect              say how each table of the database takes part, or why not, and what of
                       it is a danger (then it ends with 1); changes nothing, needs no daemon
  snapshots            list the snapshots in the store
  restore              write the newest snapshot to FILE (default: restored.db), as a plain
                       database without HarmonyLite's tables; with -dry-run only say, by
                       table, how many rows of the database the snapshot lacks
  status               show this node and all others: how far behind, what waits, last seen
  schema status        show the hash of the replicated tables' schema; with -cluster, which
                       nodes have a different one
  verify               compare the rows of all nodes, and name those that differ; with -repair
                       publish the newest version of those again (-dry-run: only say so)
  forget               take NODE, which is gone for good, off the list of nodes
  release              lower the versions of rows that lie in the future, so that later writes
                       win again; with the daemon stopped, on every node
  pause, resume        go offline: capture and do not connect, also after a restart; and back
  diag                 write facts that help to find a fault to FILE (default:
                       harmonylite-diag.txt), without secrets and without rows
  nats-permissions     print the rights that a node needs on a NATS server, as a block of its
                       configuration; with -node, for the login of that node alone
  key new              write a new cluster key to FILE, which must not exist, for its owner alone

  -config FILE         configuration, TOML (default: config.toml in the current directory)
  -node-id N           this node's id, from 1; goes before node_id of the configuration
  -check               say whether the configuration is sound, and stop
  -cleanup             take triggers and change log out of the database, and stop
  -save-snapshot       save a snapshot, and stop; a daemon that runs does so on SIGUSR1
  -pid-file FILE       write the process id to FILE while the daemon runs, for init scripts
  -version             print the version, and stop
  -help, -h            print this text, and stop
  -json                for a command that shows something: as JSON
  -schema-status       the same as schema status
  -schema-status-cluster
                       the same as schema status -cluster
  -cluster             for schema status: compare with the other nodes
  -repair              for verify: make rows that differ equal again
  -dry-run             for verify -repair, forget, release and restore: only say what would
                       be done
  -drop TABLE          for held: give up what is held of TABLE on this node
  -o FILE              for restore and diag: where to, a file that is not there yet

The server that runs beside us while nats.urls is empty:

  -cluster-addr HOST:PORT
                       listen here for the servers of other nodes; port -1: any free one
  -insecure-cluster    let any server that reaches -cluster-addr join, without a login or TLS
                       ([nats.cluster]); then it reads and writes everything
  -cluster-peers LIST  the other nodes' servers, separated by commas:
                         nats://HOST:PORT/  a server
                         dns://HOST:PORT/?min=3&interval_ms=1000
                                            all addresses of a name: wait for at least min
                                            (default 2), ask every interval_ms (default 1000)
  -leaf-servers LIST   servers to join as a leaf node, in the same form

A flag may be written -flag VALUE, -flag=VALUE or with two dashes.

examples:

  one node, and a look at its configuration first
    harmonylite -config /etc/harmonylite.toml -check
    harmonylite -config /etc/harmonylite.toml

  three nodes whose servers find each other, here the first
    harmonylite -config node-1.toml -cluster-addr 10.0.0.1:4221 \\
        -cluster-peers nats://10.0.0.2:4221/,nats://10.0.0.3:4221/

  a copy of the newest snapshot, to look at or to keep
    harmonylite restore -o backup.db -config /etc/harmonylite.toml

  leave a database as it was before
    harmonylite -config /etc/harmonylite.toml -cleanup
";

/// The task that the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Replicate until told to stop.
    Run(Flags),
    /// Check the configuration.
    Check(Flags),
    /// Remove our triggers and tables from the database.
    Cleanup(Flags),
    /// Release the rows whose version lies in the future.
    Release {
        /// None: see [`crate::config::Config::find`].
        config: Option<PathBuf>,
        /// Say which, and change nothing.
        dry_run: bool,
    },
    /// Save a snapshot, then stop.
    SaveSnapshot(Flags),
    /// Write the newest snapshot to a file, as a plain database.
    Restore {
        /// The configuration file and flags for the server.
        options: Flags,
        /// The file to write; none: `restored.db`.
        to: Option<PathBuf>,
        /// Say what the snapshot lacks, and write nothing.
        dry_run: bool,
    },
    /// List what the store of snapshots holds.
    Snapshots {
        /// The configuration file and flags for the server.
        options: Flags,
        /// Print JSON instead of text.
        json: bool,
    },
    /// Show the displaced rows, each with the row that displaced it.
    Conflicts {
        /// None: see [`crate::config::Config::find`].
        config: Option<PathBuf>,
        /// Print JSON instead of text.
        json: bool,
    },
    /// Show the held changes, or drop those of one table.
    Held {
        /// None: see [`crate::config::Config::find`].
        config: Option<PathBuf>,
        /// Print JSON instead of text.
        json: bool,
        /// The table whose held changes this node gives up; none: only show them.
        drop: Option<String>,
    },
    /// Say how each table of a database takes part.
    Inspect {
        /// None: see [`crate::config::Config::find`], unless `database` is given.
        config: Option<PathBuf>,
        /// Print JSON instead of text.
        json: bool,
        /// The database file; none: the one that the configuration names.
        database: Option<PathBuf>,
    },
    /// Print the rights that a node needs on a NATS server.
    NatsPermissions {
        /// None: see [`crate::config::Config::find`].
        config: Option<PathBuf>,
        /// The node whose login it is; none: one login for all.
        node: Option<u64>,
    },
    /// Make a cluster key.
    NewKey {
        /// The file to write.
        to: PathBuf,
    },
    /// Ask the running daemon, or read its database if none runs.
    Query {
        /// None: see [`crate::config::Config::find`].
        config: Option<PathBuf>,
        /// Print JSON instead of text.
        json: bool,
        /// The question to answer.
        what: DaemonQuery,
    },
    /// Print the version of this release.
    Version,
    /// Print [`HELP`].
    Help,
}

/// A question for the running daemon.
#[derive(Debug, PartialEq, Eq)]
pub enum DaemonQuery {
    /// The state of this node and of the others.
    Status,
    /// The hash of the replicated tables' schema; with `cluster`, compared with all nodes.
    Schema {
        /// Ask all nodes, not this one alone.
        cluster: bool,
    },
    /// Whether all nodes hold the same rows; with `repair`, the newest version of a row that
    /// differs is published again, unless `dry_run`.
    Verify {
        /// Publish the newest version of each row that differs.
        repair: bool,
        /// Name what a repair would publish, and publish nothing.
        dry_run: bool,
    },
    /// Takes `node`, which is gone for good, off the list of nodes; not with `dry_run`.
    Forget {
        /// The id of the node.
        node: u64,
        /// Say what would be removed, and remove nothing.
        dry_run: bool,
    },
    /// Pauses the daemon, or ends its pause.
    Pause {
        /// Go offline; false: come back.
        pauses: bool,
    },
    /// Writes a text file that helps to find a fault, without secrets and without rows.
    Diag {
        /// The file to write; none: standard output.
        to: Option<PathBuf>,
    },
}

/// The flags that stand beside the configuration file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flags {
    /// None: see [`crate::config::Config::find`].
    pub config: Option<PathBuf>,
    /// Never 0.
    pub node_id: Option<u64>,
    /// Where our own nats-server listens for the servers of other nodes; none: nowhere.
    pub cluster_addr: Option<ListenAddress>,
    /// Servers of other nodes that form a cluster with our own.
    pub cluster_peers: Vec<Peer>,
    /// Servers that our own joins as a leaf node.
    pub leaf_servers: Vec<Peer>,
    /// Any server may join at `cluster_addr`.
    pub insecure_cluster: bool,
    /// A file that holds the process id while the daemon runs.
    pub pid_file: Option<PathBuf>,
}

/// The address of another server, or a name under which several servers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// One server; its URL has host and port.
    Direct(ServerUrl),
    /// All addresses that `host` has in DNS, resolved every `interval` until there are `min`.
    Dns {
        /// The name to resolve.
        host: String,
        /// The port of every server found.
        port: u16,
        /// How many addresses to wait for.
        min: u32,
        /// Time between two queries, at least 10 ms.
        interval: Duration,
    },
}

/// A mistake in the command line; its text names the flag and what is allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; harmonylite -help lists the flags")]
pub struct CliError(String);

const CLUSTER_SCHEMES: [&str; 4] = ["nats", "tls", "nats-route", "dns"];
const LEAF_SCHEMES: [&str; 4] = ["nats", "tls", "nats-leaf", "dns"];

/// Words that are commands. They may stand among the flags.
const SUBCOMMANDS: [&str; 15] = [
    "conflicts",
    "diag",
    "forget",
    "held",
    "inspect",
    "key",
    "nats-permissions",
    "pause",
    "release",
    "restore",
    "resume",
    "schema",
    "snapshots",
    "status",
    "verify",
];

/// Flags whose value is the next word.
const WITH_VALUE: [&str; 10] = [
    "--drop",
    "--node",
    "--o",
    "--pid-file",
    "--config",
    "--node-id",
    "--cluster-addr",
    "--cluster-peers",
    "--leaf-servers",
    "--leaf-server",
];

/// Flags with two dashes, as pico-args knows them.
const FLAGS: [&str; 22] = [
    "--drop",
    "--node",
    "--insecure-cluster",
    "--save-snapshot",
    "--pid-file",
    "--config",
    "--node-id",
    "--check",
    "--cleanup",
    "--cluster-addr",
    "--cluster-peers",
    "--leaf-servers",
    "--leaf-server",
    "--version",
    "--help",
    "--json",
    "--o",
    "--cluster",
    "--dry-run",
    "--repair",
    "--schema-status",
    "--schema-status-cluster",
];

/// Flags of the Go version without a counterpart, each with the replacement.
const OF_GO: [(&str, &str); 1] = [("pprof", "leave it out; perf and gdb look into the process")];

/// Reads the arguments, without the program's name. A mistake in any of them is an error.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let mut words: Vec<OsString> = args.into_iter().flat_map(normalised).collect();
    let subcommand = take_subcommand(&mut words);
    let mut args = Arguments::from_vec(words);
    if args.contains(["-h", "--help"]) {
        return Ok(Command::Help);
    }
    if args.contains("--version") {
        return Ok(Command::Version);
    }
    match subcommand.as_deref() {
        None => parse_daemon(args),
        Some("conflicts") => {
            let config = config(&mut args)?;
            let json = args.contains("--json");
            finish(args, "conflicts takes -config and -json alone")?;
            Ok(Command::Conflicts { config, json })
        }
        Some("held") => {
            let drop = parsed(&mut args, "--drop", |table| Ok(table.to_owned()))?;
            let config = config(&mut args)?;
            let json = args.contains("--json");
            finish(args, "held takes -config, -json and -drop TABLE")?;
            Ok(Command::Held { config, json, drop })
        }
        Some("inspect") => {
            let config = config(&mut args)?;
            let json = args.contains("--json");
            let database = free_word(&mut args).map(PathBuf::from);
            finish(args, "inspect takes -config, -json and a database")?;
            Ok(Command::Inspect {
                config,
                json,
                database,
            })
        }
        Some("nats-permissions") => {
            let node = parsed(&mut args, "--node", node_id)?;
            let config = config(&mut args)?;
            finish(args, "nats-permissions takes -config and -node N")?;
            Ok(Command::NatsPermissions { config, node })
        }
        Some("key") => {
            let is_new = free_word(&mut args).is_some_and(|word| word == "new");
            let to = free_word(&mut args).filter(|_| is_new);
            let to = to.ok_or(CliError("key needs the words new FILE behind it".into()))?;
            finish(args, "key new takes a file alone")?;
            Ok(Command::NewKey { to: to.into() })
        }
        Some("release") => {
            let config = config(&mut args)?;
            let dry_run = args.contains("--dry-run");
            finish(args, "release takes -config and -dry-run alone")?;
            Ok(Command::Release { config, dry_run })
        }
        Some("restore") => {
            let to = value(&mut args, "--o")?.map(PathBuf::from);
            let dry_run = args.contains("--dry-run");
            let options = options(&mut args)?;
            finish(
                args,
                "restore takes -o FILE, -dry-run, -config and the flags for the server",
            )?;
            if dry_run && to.is_some() {
                return Err(CliError(
                    "restore takes -o FILE or -dry-run, not both: -dry-run writes nothing".into(),
                ));
            }
            Ok(Command::Restore {
                options,
                to,
                dry_run,
            })
        }
        Some("snapshots") => {
            let json = args.contains("--json");
            let options = options(&mut args)?;
            finish(
                args,
                "snapshots takes -json, -config and the flags for the server",
            )?;
            Ok(Command::Snapshots { options, json })
        }
        Some(word) => query::parse(word, args),
    }
}

/// Takes out the first word that is neither a flag nor a flag's value, if it is a known command.
fn take_subcommand(words: &mut Vec<OsString>) -> Option<String> {
    let mut is_value = false;
    let at = words.iter().position(|word| {
        let word = word.to_string_lossy();
        let was_value = std::mem::replace(&mut is_value, WITH_VALUE.contains(&&*word));
        !was_value && !word.starts_with('-')
    })?;
    let word = words[at].to_str().filter(|w| SUBCOMMANDS.contains(w))?;
    let word = word.to_owned();
    words.remove(at);
    Some(word)
}

/// The next word, if it is not a flag. Call it after all flags are taken.
fn free_word(args: &mut Arguments) -> Option<OsString> {
    let next = args.clone().finish().into_iter().next()?;
    if next.as_encoded_bytes().starts_with(b"-") {
        return None;
    }
    let taken = args.opt_free_from_os_str(|text| Ok::<_, String>(text.to_owned()));
    taken.ok().flatten()
}

fn config(args: &mut Arguments) -> Result<Option<PathBuf>, CliError> {
    Ok(value(args, "--config")?.map(PathBuf::from))
}

/// Fails if an argument is left over; `takes` names the flags of the command.
fn finish(args: Arguments, takes: &str) -> Result<(), CliError> {
    let Some(left) = args.finish().into_iter().next() else {
        return Ok(());
    };
    let left = left.to_string_lossy();
    let is_elsewhere = FLAGS.contains(&&*left) && !takes.contains(shown(&left));
    Err(CliError(match is_elsewhere {
        true => format!("{} does not go here: {takes}", shown(&left)),
        false => unexpected(&left),
    }))
}

fn options(args: &mut Arguments) -> Result<Flags, CliError> {
    Ok(Flags {
        config: config(args)?,
        node_id: parsed(args, "--node-id", node_id)?,
        cluster_addr: parsed(args, "--cluster-addr", str::parse)?,
        cluster_peers: parsed(args, "--cluster-peers", |list| {
            peers(list, &CLUSTER_SCHEMES)
        })?
        .unwrap_or_default(),
        leaf_servers: leaf_servers(args)?,
        insecure_cluster: args.contains("--insecure-cluster"),
        pid_file: None,
    })
}

/// The command line without a subcommand: flags only.
fn parse_daemon(mut args: Arguments) -> Result<Command, CliError> {
    let mut options = options(&mut args)?;
    options.pid_file = value(&mut args, "--pid-file")?.map(PathBuf::from);
    let json = args.contains("--json");
    if let Some(cluster) = query::schema_flag(&mut args) {
        finish(args, "-schema-status takes -config and -json alone")?;
        let (config, what) = (options.config, DaemonQuery::Schema { cluster });
        return Ok(Command::Query { config, json, what });
    }
    let does = ["--check", "--cleanup", "--save-snapshot"].map(|flag| args.contains(flag));
    if options.pid_file.is_some() && (does[0] || does[1]) {
        return Err(CliError(
            "-pid-file does not go here: it is for the daemon".into(),
        ));
    }
    if json {
        return Err(CliError(
            "-json does not go here: it is for the commands that show something".into(),
        ));
    }
    if value(&mut args, "--node")?.is_some() {
        return Err(CliError(
            "-node does not go here: it is for nats-permissions".into(),
        ));
    }
    if value(&mut args, "--o")?.is_some() {
        return Err(CliError(
            "-o does not go here: it is for restore and diag".into(),
        ));
    }
    if value(&mut args, "--drop")?.is_some() {
        return Err(CliError("-drop does not go here: it is for held".into()));
    }
    finish(args, &FLAGS.join(" "))?;
    match does {
        [false, false, false] => Ok(Command::Run(options)),
        [true, false, false] => Ok(Command::Check(options)),
        [false, true, false] => Ok(Command::Cleanup(options)),
        [false, false, true] => Ok(Command::SaveSnapshot(options)),
        _ => Err(CliError(
            "-check, -cleanup and -save-snapshot do not go together".into(),
        )),
    }
}

/// Turns `-flag=VALUE` into `--flag VALUE` for known flags. All else stays as it is, so that an
/// error can quote it.
fn normalised(arg: OsString) -> Vec<OsString> {
    let Some(text) = arg.to_str() else {
        return vec![arg];
    };
    let (flag, value) = match text.split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (text, None),
    };
    let flag = format!("--{}", flag.trim_start_matches('-'));
    if !text.starts_with('-') || !FLAGS.contains(&flag.as_str()) {
        return vec![arg];
    }
    [Some(flag.as_str()), value]
        .into_iter()
        .flatten()
        .map(OsString::from)
        .collect()
}

/// The value after `flag`. A value that begins with a dash is the next flag: the value is missing.
fn value(args: &mut Arguments, flag: &'static str) -> Result<Option<OsString>, CliError> {
    let missing = || CliError(format!("{} needs a value", shown(flag)));
    let found = args
        .opt_value_from_os_str(flag, |text| Ok::<_, String>(text.to_owned()))
        .map_err(|_| missing())?;
    match found {
        Some(text) if text.is_empty() || text.as_encoded_bytes()[0] == b'-' => Err(missing()),
        found => Ok(found),
    }
}

/// The value after `flag`, read by `parse`, whose error says what is allowed.
fn parsed<T>(
    args: &mut Arguments,
    flag: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, CliError> {
    let Some(text) = value(args, flag)? else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    parse(&text).map(Some).map_err(|allowed| {
        let found = redacted(&text);
        CliError(format!(
            "{} is {found:?}, but must be {allowed}",
            shown(flag)
        ))
    })
}

/// `-leaf-servers`, or `-leaf-server`, as the documentation of the Go version also writes it.
fn leaf_servers(args: &mut Arguments) -> Result<Vec<Peer>, CliError> {
    let read = |list: &str| peers(list, &LEAF_SCHEMES);
    let servers = parsed(args, "--leaf-servers", read)?;
    let alias = parsed(args, "--leaf-server", read)?;
    Ok(servers.into_iter().chain(alias).flatten().collect())
}

fn node_id(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|&id| id != 0);
    number.ok_or_else(|| format!("an integer from 1 to {}", u64::MAX))
}

/// A list of URLs separated by commas; a comma at the end is allowed.
fn peers(list: &str, schemes: &[&str]) -> Result<Vec<Peer>, String> {
    let urls = list.split(',').map(str::trim).filter(|url| !url.is_empty());
    let read = |(index, url)| {
        let tell = |allowed| format!("a list whose entry {} is {allowed}", index + 1);
        peer(url, schemes).map_err(tell)
    };
    urls.enumerate().map(read).collect()
}

fn peer(text: &str, schemes: &[&str]) -> Result<Peer, String> {
    let url = ServerUrl::parse(text, schemes)?;
    let port = url
        .port
        .ok_or("a URL with a port, such as nats://host:4222/")?;
    if url.scheme != "dns" {
        return Ok(Peer::Direct(url));
    }
    let number = |name: &str, default: u32| match url.query(name) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| format!("a URL whose {name} is a whole number")),
    };
    let min = number("min", 2)?;
    // Shorter intervals would only load the name server.
    let interval_ms = number("interval_ms", 1000)?.max(10);
    let interval = Duration::from_millis(interval_ms.into());
    Ok(Peer::Dns {
        host: url.host,
        port,
        min,
        interval,
    })
}

/// A flag as the help text writes it.
fn shown(flag: &str) -> &str {
    &flag[1..]
}

fn unexpected(arg: &str) -> String {
    if FLAGS.contains(&arg) {
        return format!("{} is given twice", shown(arg));
    }
    if !arg.starts_with('-') {
        return format!("unexpected argument {arg:?}");
    }
    let flag = arg.split('=').next().unwrap_or_default();
    let of_go = OF_GO
        .iter()
        .find(|(name, _)| *name == flag.trim_start_matches('-'));
    if let Some((_, instead)) = of_go {
        return format!("{flag} is a flag of the Go version that does not exist here: {instead}");
    }
    let known = FLAGS.map(|flag| flag.trim_start_matches('-'));
    // Any letter is near a flag of one letter, so such flags are never suggested.
    let known = known.into_iter().filter(|flag| flag.len() > 1);
    match closest(flag.trim_start_matches('-'), known) {
        Some(known) => format!("unknown flag {flag}, did you mean -{known}?"),
        None => format!("unknown flag {flag}"),
    }
}

mod query;
#[cfg(test)]
mod tests;
