//! Servers that answer with errors of any length, and repeat what they were sent.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use harmonylite::address::secret::Secret;
use harmonylite::config::snapshot::{S3Store, StoreSettings as Settings, WebDavStore};
use harmonylite::store::open;
use harmonylite::stream::StreamError;

const TOKEN: &str = "FwoGZXIvYXdzEBYaDH-the-session-token";
const KEY: &str = "wJalrXUtnFEMI-the-secret-key";

/// Bytes that a server could send before the client had enough: what fits into the buffers of the
/// system, and some.
const BOUND: u64 = 32 << 20;

/// Refuses everything, with the text and bytes without end behind it. Returns the port and the
/// number of bytes that were sent.
fn server(text: &'static str) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    // It ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            refuse(client, text, &counter);
        }
    });
    (port, sent)
}

fn refuse(client: TcpStream, text: &str, sent: &AtomicU64) {
    let lines = BufReader::new(&client).lines().map_while(Result::ok);
    let _head = lines.take_while(|line| !line.is_empty()).count();
    let head = "HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000000000\r\n\r\n";
    if (&client)
        .write_all(format!("{head}{text}").as_bytes())
        .is_err()
    {
        return;
    }
    let more = [b'x'; 64 << 10];
    while sent.load(Ordering::Relaxed) < 2 * BOUND && (&client).write_all(&more).is_ok() {
        sent.fetch_add(more.len() as u64, Ordering::Relaxed);
    }
}

fn cause(settings: &Settings) -> String {
    let opened = open(settings, "changes", &|| Err(StreamError::Stopped));
    opened.err().expect("it is refused").to_string()
}

fn check(text: &str, sent: &AtomicU64) {
    assert!(sent.load(Ordering::Relaxed) < BOUND, "{sent:?}");
    assert!(
        text.len() < 1000 && !text.contains(char::is_control),
        "{text:?}"
    );
    for secret in [TOKEN, KEY, "the-secret"] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn s3(port: u16) -> Settings {
    Settings::S3(S3Store {
        endpoint: format!("127.0.0.1:{port}"),
        bucket: "snaps".into(),
        path: None,
        use_ssl: false,
        path_style: Some(true),
        access_key: Some(Secret::new("AKEXAMPLE")),
        secret: Some(Secret::new(KEY)),
        session_token: Some(Secret::new(TOKEN)),
        region: None,
        part_size: 5 << 20,
    })
}

#[test]
fn errors_are_cut_and_hold_no_secret() {
    let (port, sent) = server(
        "<Error><Code>InvalidToken</Code><Message>\n\x1b[31mnot valid:\r\n \
         FwoGZXIvYXdzEBYaDH-the-session-token of wJalrXUtnFEMI-the-secret-key</Message></Error>",
    );
    let text = cause(&s3(port));
    check(&text, &sent);
    assert!(
        text.contains("InvalidToken:") && text.contains("not valid:"),
        "{text}"
    );
    assert!(text.contains("***"), "{text}");
}

/// Neither a text without end nor one that is cut within a secret shows anything of it.
#[test]
fn errors_without_an_end() {
    let (port, sent) = server("<Error><Code>x</Code><Message>wJalrXUtnFEMI-the-secret-");
    check(&cause(&s3(port)), &sent);
}

#[test]
fn webdav_too() {
    let (port, sent) = server("\x1b[31m wJalrXUtnFEMI-the-secret-key");
    let settings = Settings::WebDav(WebDavStore {
        url: None,
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        path: Some("snapshots".into()),
        username: Some("me".into()),
        password: Some(Secret::new(KEY)),
    });
    let text = cause(&settings);
    check(&text, &sent);
    assert!(text.contains("403"), "{text}");
}
