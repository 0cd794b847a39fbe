//! The files that the Go version ships, without their comments.

use super::*;

const SHIPPED: &str = r#"
[snapshot]
enabled=true
store="nats"
interval=0
[snapshot.nats]
replicas=1
[snapshot.s3]
endpoint="127.0.0.1:9000"
path="snapshots/harmonylite"
use_ssl=false
bucket="harmonylite"
[snapshot.webdav]
url="https://<webdav_server>/<web_dav_path>?dir=/snapshots/for/harmonylite&login=<name>&secret=<word>"
[snapshot.sftp]
url="sftp://<user>:<password>@<sftp_server>:<port>/path/to/save/snapshot"
[replication_log]
replicas=1
shards=1
max_entries=1024
compress=true
update_existing=false
[nats]
urls=[
]
bind_address="0.0.0.0:4222"
server_config=""
subject_prefix="harmonylite-change-log"
stream_prefix="harmonylite-changes"
seed_file=""
user_name=""
user_password=""
connect_retries=5
reconnect_wait_seconds=2
[prometheus]
enable=false
[logging]
verbose=true
format="console"
[health_check]
enable=false
bind="0.0.0.0:8090"
path="/health"
detailed=true
"#;

#[test]
fn its_configuration_is_sound_as_it_is_shipped() {
    let config = sound(SHIPPED);
    assert_eq!(config.nats.connect_retries, Some(5));
    assert_eq!(config.health_check.bind.to_string(), "0.0.0.0:8090");
    assert!(!config.health_check.enable);
}

#[test]
fn the_configuration_of_its_example_nodes_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let server = folder.path().join("nats-server-1.conf");
    std::fs::write(&server, "monitor_port = 8222\n").unwrap();
    let config = sound(&format!(
        "seq_map_path=\"/tmp/harmonylite-1-sm.cbor\"
        [replication_log]\nshards=2\nmax_entries=2048\nreplicas=1\ncompress=true
        [nats]\nuser_name = \"harmonylite\"\nuser_password = \"secure-password-here\"
        reconnect_wait_seconds=5\nserver_config = \"{}\"
        [logging]\nverbose = false\nformat = \"console\"
        [prometheus]\nenable = true\nbind = \"0.0.0.0:3010\"
        [health_check]\nenable = true\nbind = \"0.0.0.0:8090\"\npath = \"/up\"\ndetailed = false
        [snapshot]\nenabled = true\ninterval = 60000\nleader_ttl = 30000",
        server.display()
    ));
    let check = config.health_check;
    assert_eq!(
        (check.enable, &*check.path, check.detailed),
        (true, "/up", false)
    );
}

/// In a store that is used they are mistakes, and without them an address is looked at in any.
#[test]
fn placeholders_are_passed_over_where_a_store_is_not_used() {
    let used = |store: &str| SHIPPED.replace("store=\"nats\"", &format!("store=\"{store}\""));
    for store in ["webdav", "sftp"] {
        if is_built_in(store) {
            let part = format!("snapshot.{store}.url must be like");
            check_refused(&used(store), &[&part]);
        }
    }
    let mistaken = SHIPPED.replace(
        "sftp://<user>:<password>@<sftp_server>:<port>",
        "http://host",
    );
    check_refused(
        &mistaken,
        &["snapshot.sftp.url begins with a different scheme"],
    );
    check_refused(
        "[health_check]\npath = \"up\"",
        &["health_check.path", "begins with /"],
    );
}
