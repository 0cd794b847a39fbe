//! The init scripts of examples/service, run by busybox as on their boxes.
//!
//! OpenWrt's rc.common, procd and UCI are not here: [`RC_COMMON`] stands for them and writes down
//! the calls of the script.

use harmonylite::db_file::access::FileAccess;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::node::Node;
use crate::wait::until;

/// UCI files as shell, and a line for every call of procd.
const RC_COMMON: &str = r#"
script=$1 action=$2
for name in open_instance close_instance set_param append_param add_reload_trigger; do
	eval "procd_$name() { echo \"$name \$*\"; }"
done
logger() { while [ $# -gt 1 ]; do shift; done; echo "error $1" >&2; }
config() { SECTION_NAME=$2 SECTIONS="$SECTIONS $2"; }
option() { eval "CONFIG_${SECTION_NAME}_$1=\$2"; }
list() { eval "CONFIG_${SECTION_NAME}_$1=\"\${CONFIG_${SECTION_NAME}_$1} \$2\""; }
config_load() { . "$UCI_DIR/$1"; }
config_get() { eval "$1=\"\${CONFIG_${2}_$3:-\$4}\""; }
config_get_bool() { config_get "$@"; }
config_foreach() { for each in $SECTIONS; do "$1" "$each"; done; }
config_list_foreach() { for each in $(eval "echo \$CONFIG_${1}_$2"); do "$3" "$each"; done; }
. "$script"
case $action in
start) start_service && service_triggers ;;
esac
"#;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/service")
        .join(name)
}

fn ash() -> Command {
    let mut command = Command::new("busybox");
    command.arg("ash");
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn sysv_starts_stops_restarts_and_tells() {
    let node = Node::new(1);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    let user = text(&Command::new("id").arg("-un").output().unwrap());
    let defaults = format!(
        "PROG={}\nCONFIG={}\nPIDFILE={}\nOUTPUT={}\nRUN_AS={user}",
        env!("CARGO_BIN_EXE_harmonylite"),
        node.file("config.toml").display(),
        node.file("pid").display(),
        node.file("log").display(),
    );
    fs::write(node.file("defaults"), defaults).unwrap();
    let run = |word: &str| {
        let mut command = ash();
        command.arg(script("sysv.init")).arg(word);
        let output = command.env("HARMONYLITE_DEFAULTS", node.file("defaults"));
        let output = output.output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let pid = || fs::read_to_string(node.file("pid")).unwrap();
    assert_eq!(run("status"), (3, "harmonylite does not run\n".into()));
    assert_eq!(run("start"), (0, String::new()));
    node.until_log("founds the cluster");
    let first = pid();
    assert_eq!(run("start"), (0, "harmonylite runs already\n".into()));
    assert_eq!(run("reload").0, 0);
    let (code, said) = run("restart");
    assert_eq!((code, said.as_str()), (0, ""));
    assert_ne!(pid(), first);
    let runs = format!("harmonylite runs, process {}", pid());
    assert_eq!(run("status"), (0, runs));
    assert_eq!(run("stop"), (0, String::new()));
    assert_eq!(run("stop"), (0, String::new()));
    assert_eq!(run("status").0, 3);
    // A mistake in the configuration does not end the daemon that runs.
    assert_eq!(run("start").0, 0);
    fs::write(node.file("config.toml"), "nonsense = 1").unwrap();
    let (code, said) = run("restart");
    assert!(code == 1 && said.contains("nonsense"), "{said}");
    assert_eq!(run("status").0, 0);
    assert_eq!(run("stop").0, 0);
    until("its server is gone", || {
        let held =
            harmonylite::lock::take(&node.file("app.db-harmonylite.lock"), &FileAccess::OURS);
        held.unwrap().map(drop)
    });
}

struct Box {
    folder: tempfile::TempDir,
}

impl Box {
    /// The output of `start` with this content of /etc/config/harmonylite.
    fn start(&self, uci: &str) -> String {
        let file = |name: &str| self.folder.path().join(name);
        fs::write(file("harmonylite"), uci).unwrap();
        fs::write(file("rc.common"), RC_COMMON).unwrap();
        let mut command = ash();
        command.args([file("rc.common"), script("openwrt.init"), "start".into()]);
        command.env("UCI_DIR", self.folder.path());
        command.env("HARMONYLITE_PROG", env!("CARGO_BIN_EXE_harmonylite"));
        command.env("HARMONYLITE_RUN", file("run"));
        text(&command.output().unwrap())
    }

    /// Whether the daemon accepts the configuration that the script wrote for a section.
    fn check(&self, section: &str) -> String {
        let file = self.folder.path().join(format!("run/{section}.toml"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonylite"));
        let output = command.arg("-config").arg(file).arg("-check").output();
        text(&output.unwrap())
    }
}

#[test]
fn openwrt_makes_an_instance_of_each_section() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("data.db");
    let on_box = Box { folder };
    let uci = format!(
        "config harmonylite 'app'
            option enabled '1'
            option db_path '{}'
            option node_id '7'
            list nats_url 'nats://hub.example:4222'
            list nats_url 'nats://other.example:4222'
            option nats_user 'box'
            option nats_password 'a\\b\"c'
            option max_entries '5000'
         config harmonylite 'off'
            option db_path '/nowhere'
         config harmonylite 'own'
            option enabled '1'
            option config '/etc/own.toml'
            option user 'app'
            option cluster_addr '10.0.0.1:4221'",
        database.display()
    );
    let said = on_box.start(&uci);
    let lines: Vec<&str> = said.lines().collect();
    let (program, run) = (
        env!("CARGO_BIN_EXE_harmonylite"),
        on_box.folder.path().join("run"),
    );
    let written = run.join("app.toml");
    for expected in [
        "open_instance app".to_owned(),
        format!("set_param command {program} -config {}", written.display()),
        format!("set_param file {}", written.display()),
        "set_param respawn 3600 5 0".into(),
        "open_instance own".into(),
        format!("set_param command {program} -config /etc/own.toml"),
        "append_param command -cluster-addr 10.0.0.1:4221".into(),
        "set_param user app".into(),
        "add_reload_trigger harmonylite".into(),
    ] {
        assert!(
            lines.contains(&&expected[..]),
            "no {expected:?} in:\n{said}"
        );
    }
    assert!(!said.contains("off") && !run.join("off.toml").exists());
    let config = fs::read_to_string(&written).unwrap();
    assert!(config.contains(r#"user_password = "a\\b\"c""#), "{config}");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&written).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let checked = on_box.check("app");
    assert!(
        checked.contains("the configuration is valid"),
        "{checked}\n{config}"
    );
}

#[test]
fn openwrt_names_what_a_section_lacks() {
    let on_box = Box {
        folder: tempfile::tempdir().unwrap(),
    };
    for (options, expected) in [
        ("", "error app: set db_path or config"),
        (
            "option db_path '/srv/a.db'",
            "error app: set nats_url or config",
        ),
        (
            "option db_path '/srv/a.db'
             option node_id 'seven'
             list nats_url 'nats://hub:4222'",
            "error app.node_id is 'seven', but must be a whole number",
        ),
    ] {
        let uci = format!("config harmonylite 'app'\n option enabled '1'\n{options}");
        let said = on_box.start(&uci);
        assert!(said.contains(expected), "no {expected:?} in {said:?}");
        assert!(!said.contains("open_instance"), "{said}");
    }
}
