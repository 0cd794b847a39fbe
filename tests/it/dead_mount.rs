//! A store of snapshots on a mount that is dead: each call to it hangs in the kernel.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::files::is_root;
use crate::health::{serve, until_health};
use crate::node::{Node, until};

/// As for every end, see `stop`.
const LIMIT: Duration = Duration::from_secs(3);

/// A mounted file system that answers nothing: nobody reads what the kernel asks of it.
struct DeadMount {
    folder: TempDir,
    /// Has the file system open: with its end the calls fail that hang.
    holder: Child,
}

impl DeadMount {
    /// None if this machine lets the test mount nothing.
    fn new(test: &str) -> Option<DeadMount> {
        if !is_root(test) || !Path::new("/dev/fuse").exists() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = "exec 3<>/dev/fuse; options=rootmode=40000,user_id=0,group_id=0
                      mount -i -t fuse -o fd=3,$options dead \"$0\" && echo up && read end";
        let mut holder = Command::new("sh")
            .args(["-c", script])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        let told = holder.stdout.take().unwrap().read_exact(&mut up);
        told.expect("it is mounted");
        Some(DeadMount { folder, holder })
    }

    fn keep_snapshots_there(&self, node: &mut Node) {
        let path = format!("'{}'", self.folder.path().display());
        node.set("snapshot.store", "'file'")
            .set("snapshot.file.path", &path)
            .set("snapshot.leader_ttl", "1000");
    }
}

impl DeadMount {
    /// The calls that hang fail, and below the mount is an ordinary folder.
    fn end(&mut self) {
        let Some(stdin) = self.holder.stdin.take() else {
            return;
        };
        drop(stdin);
        self.holder.wait().unwrap();
        let mut unmount = Command::new("umount");
        let ended = unmount.arg("-l").arg(self.folder.path()).status();
        assert!(ended.unwrap().success());
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_store_that_hangs_delays_nobody() {
    let Some(mut mount) = DeadMount::new("a_store_that_hangs_delays_nobody") else {
        return;
    };
    let mut cluster = Cluster::stopped(2, |node| mount.keep_snapshots_there(node));
    let port = serve(&mut cluster.nodes[0]);
    Node::start_all(&mut cluster.nodes);
    for node in &cluster.nodes {
        let id = node.pid();
        node.execute(&format!("INSERT INTO item VALUES ({id}, 'a', 0)"));
    }
    let says = [
        "\"snapshots\":",
        &format!("file {}", mount.folder.path().display()),
        "it hangs since 2",
    ];
    until_health(port, 503, &says);
    assert_eq!(cluster.converge().len(), 2);
    let log = cluster.nodes[0].log();
    let loud = log.lines().filter(|line| line.contains("it hangs since"));
    let loud = loud.filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    assert!(loud.count() <= 2, "{log}");
    let took = cluster.nodes[1].stop();
    assert!(took < LIMIT, "{took:?}");
    mount.end();
    cluster.nodes[0].until_log(" made, because ");
    until_health(port, 200, &["\"status\":\"healthy\""]);
    cluster.nodes[1].start();
    cluster.converge();
}

/// It has no database, so it searches for a snapshot before all else.
#[test]
fn a_new_node_begins_beside_a_store_that_hangs() {
    let Some(mount) = DeadMount::new("a_new_node_begins_beside_a_store_that_hangs") else {
        return;
    };
    let mut cluster = Cluster::stopped(1, |node| mount.keep_snapshots_there(node));
    let node = &mut cluster.nodes[0];
    std::fs::remove_file(node.database()).unwrap();
    node.start();
    node.until_log("searches for a snapshot");
    let took = node.stop();
    assert!(took < LIMIT, "{took:?}");
    node.start();
    node.until_log("this node begins without a snapshot");
    assert!(node.log().contains("it hangs since 2"), "{}", node.log());
    until("the database is made", || {
        node.database().exists().then_some(())
    });
}
