//! Connections: logins, messages of failures, TLS.

use std::net::TcpListener;
use std::time::Duration;

use harmonylite::stream::client::{Client, ClientOptions};
use harmonylite::stream::{StreamError, Writer};

use crate::certificates;
use crate::stream::node::{Node, PATIENCE, ensure, publish, read, streams};

#[test]
fn a_wrong_password_is_fatal_and_not_shown() {
    let node = Node::with(|node| node.options.user = Some(("me".into(), "right@1".into())));
    let url = node.server().client_url();
    let with_login = |login: &str| ClientOptions {
        urls: vec![url.replace("nats://", &format!("nats://{login}@"))],
        ..ClientOptions::default()
    };
    Client::connect(&with_login("me:right%401"), PATIENCE).unwrap();
    let options = with_login("me:hidden");
    let error = Client::connect(&options, PATIENCE).unwrap_err();
    assert!(matches!(error, StreamError::Denied(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains(url.trim_start_matches("nats://")),
        "{error}"
    );
    assert!(!format!("{error} {error:?} {options:?}").contains("hidden"));
    let given = ClientOptions {
        user: Some(("me".into(), "hidden".into())),
        ..node.client_options()
    };
    let error = Client::connect(&given, PATIENCE).unwrap_err();
    assert!(matches!(error, StreamError::Denied(_)), "{error}");
    assert!(!format!("{error} {given:?}").contains("hidden"));
}

#[test]
fn a_silent_listener_costs_only_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let options = ClientOptions {
        urls: vec![url.clone()],
        ..ClientOptions::default()
    };
    let error = Client::connect(&options, Duration::from_millis(200)).unwrap_err();
    assert!(
        matches!(&error, StreamError::Disconnected(text) if text.contains(&url)),
        "{error}"
    );
    // The client tries the next server of the list.
    let node = Node::start();
    let options = ClientOptions {
        urls: vec![url, node.server().client_url()],
        ..node.client_options()
    };
    Client::connect(&options, Duration::from_secs(2)).unwrap();
}

#[test]
fn nobody_there_is_a_matter_of_time() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let urls = vec![
        format!("nats://127.0.0.1:{port}"),
        "nats://no.such.invalid:4222".into(),
    ];
    let options = ClientOptions {
        urls,
        ..ClientOptions::default()
    };
    let error = Client::connect(&options, PATIENCE).unwrap_err();
    assert!(matches!(&error, StreamError::Disconnected(text) if text.contains(&port.to_string())));
    let missing = ClientOptions {
        seed_file: Some("/no/seed".into()),
        ..options
    };
    let error = Client::connect(&missing, PATIENCE).unwrap_err();
    assert!(
        matches!(&error, StreamError::Denied(text) if text.contains("/no/seed")),
        "{error}"
    );
}

#[test]
fn an_nkey_lets_in() {
    let key = nkeys::KeyPair::new_user();
    let (seed, public) = (key.seed().unwrap(), key.public_key());
    let node = Node::with_config(&format!(
        "authorization {{ users: [ {{ nkey: {public} }} ] }}"
    ));
    let file = node.folder.path().join("seed");
    std::fs::write(&file, format!("{seed}\n{public}\n")).unwrap();
    assert_eq!(node.server().user(), None, "the operator's file decides");
    let options = ClientOptions {
        seed_file: Some(file.clone()),
        ..node.client_options()
    };
    ensure(&Client::connect(&options, PATIENCE).unwrap(), &streams());
    std::fs::write(&file, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    let error = Client::connect(&options, PATIENCE).unwrap_err();
    assert!(matches!(error, StreamError::Denied(_)), "{error}");
    std::fs::write(&file, "nonsense").unwrap();
    let error = Client::connect(&options, PATIENCE).unwrap_err();
    assert!(
        matches!(&error, StreamError::Denied(text) if !text.contains("nonsense")),
        "{error}"
    );
}

#[test]
fn tls_with_an_authority_and_client_certificate_of_our_own() {
    let node = Node::with(|node| {
        let folder = node.folder.path();
        certificates::make(folder);
        let file = folder.join("user.conf");
        let conf = "tls { cert_file: FOLDER/server.pem, key_file: FOLDER/server.key,
                          ca_file: FOLDER/ca.pem, verify: true }";
        std::fs::write(&file, conf.replace("FOLDER", &folder.display().to_string())).unwrap();
        node.options.user_config = Some(file);
    });
    let file = |name: &str| Some(node.folder.path().join(name));
    let good = ClientOptions {
        ca_file: file("ca.pem"),
        cert_file: file("client.pem"),
        key_file: file("client.key"),
        ..node.client_options()
    };
    let connect = || Client::connect(&good, PATIENCE).unwrap();
    ensure(&connect(), &streams());
    let mut writer =
        harmonylite::stream::writer::JetStreamWriter::new(connect(), &streams()).unwrap();
    assert!(writer.window_bytes() <= 128 * 1024 && writer.max_message_bytes(1 << 30) <= 100 * 1024);
    assert!(
        publish(&mut writer, 1..501)
            .iter()
            .all(|ack| ack.result.is_ok())
    );
    let name = harmonylite::stream::jetstream::stream_name(&streams(), 1);
    let mut reader = harmonylite::stream::reader::JetStreamReader::new(connect(), name).unwrap();
    assert_eq!(read(&mut reader, 1, 500).len(), 500);

    let stranger = ClientOptions {
        ca_file: file("other.pem"),
        ..good.clone()
    };
    let error = Client::connect(&stranger, PATIENCE).unwrap_err();
    assert!(matches!(error, StreamError::Denied(_)), "{error}");
    let nameless = ClientOptions {
        cert_file: None,
        key_file: None,
        ..good
    };
    let error = Client::connect(&nameless, PATIENCE).unwrap_err();
    assert!(matches!(error, StreamError::Denied(_)), "{error}");
}

/// The error names a server that sends nothing before TLS stands; the client reaches one that
/// greets after a moment.
#[test]
fn tls_before_the_first_line() {
    let with = |first: &str| {
        Node::with(|node| {
            let folder = node.folder.path();
            certificates::make(folder);
            let file = folder.join("user.conf");
            let conf = "tls { cert_file: FOLDER/server.pem, key_file: FOLDER/server.key,
                              handshake_first: FIRST, timeout: 8 }";
            let conf = conf.replace("FOLDER", &folder.display().to_string());
            std::fs::write(&file, conf.replace("FIRST", first)).unwrap();
            node.options.user_config = Some(file);
        })
    };
    let connect = |node: &Node| {
        let options = ClientOptions {
            ca_file: Some(node.folder.path().join("ca.pem")),
            ..node.client_options()
        };
        Client::connect(&options, Duration::from_secs(4))
    };
    if !knows_handshake_first() {
        return;
    }
    connect(&with("\"300ms\"")).unwrap();
    connect(&with("auto")).unwrap();
    let error = connect(&with("true")).unwrap_err();
    assert!(
        matches!(&error, StreamError::Disconnected(text) if text.contains("handshake_first")),
        "{error}"
    );
}

/// Whether nats-server knows `handshake_first`, which it has since 2.10.
fn knows_handshake_first() -> bool {
    let version = std::process::Command::new(crate::stream::node::binary())
        .arg("-v")
        .output()
        .unwrap();
    !String::from_utf8_lossy(&version.stdout).contains("v2.9.")
}
