//! A server like S3 that wants the bucket's name in the host's name.
//!
//! It stands in for an HTTP proxy, so that no host name has to be resolved here.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;

/// An empty bucket at `snaps.stub.test`; the server refuses everything else as Alibaba does.
fn stub() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The thread ends with the process.
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
    port
}

fn answer(client: TcpStream) {
    let mut lines = BufReader::new(&client).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let _head = lines.take_while(|line| !line.is_empty()).count();
    let (status, body) = match request.split(' ').nth(1).unwrap_or_default() {
        url if !url.starts_with("http://snaps.stub.test/") => (
            "403 Forbidden",
            "<Error><Code>SecondLevelDomainForbidden</Code><Message>Please use virtual hosted \
             style to access.</Message></Error>",
        ),
        url if url.contains("list-type") => (
            "200 OK",
            "<ListBucketResult><Name>snaps</Name><IsTruncated>false</IsTruncated><Prefix></Prefix>\
             <MaxKeys>1</MaxKeys><KeyCount>0</KeyCount></ListBucketResult>",
        ),
        _ => ("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>"),
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    let _ = (&client).write_all(text.as_bytes());
}

fn list(path_style: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    let database = folder.path().join("app.db");
    let text = format!(
        "db_path = '{}'\nnats.urls = ['nats://127.0.0.1:1']\nsnapshot.store = 's3'\n\
         [snapshot.s3]\nendpoint = 'stub.test'\nbucket = 'snaps'\nuse_ssl = false\n\
         access_key = 'a'\nsecret = 'b'\n{path_style}\n",
        database.display()
    );
    std::fs::write(&config, text).unwrap();
    let proxy = format!("http://127.0.0.1:{}", stub());
    Command::new(env!("CARGO_BIN_EXE_harmonylite"))
        .arg("snapshots")
        .arg("-config")
        .arg(&config)
        .env("http_proxy", proxy)
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap()
}

#[test]
fn the_bucket_goes_where_the_server_wants_it() {
    for path_style in ["", "path_style = false"] {
        let listed = list(path_style);
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(listed.status.success(), "{path_style}: {said}");
    }
    let refused = list("path_style = true");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    for word in [
        "SecondLevelDomainForbidden",
        "snapshot.s3.path_style = false",
    ] {
        assert!(said.contains(word), "{said}");
    }
}
