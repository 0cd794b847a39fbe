//! A real server, reached over TCP and its Unix socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::client::ClientError;
use super::*;

/// Serves until the test process ends.
struct Server {
    tcp: SocketAddr,
    socket: PathBuf,
    _file: SocketFile,
    _folder: TempDir,
}

fn echo(request: &Request) -> Response {
    let name = request.query("name").unwrap_or_default();
    let told = format!("{} {:?} {name}", request.path, request.method);
    Response::text(200, told)
}

fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.db-harmonylite.sock");
    let (unix, file) = listen_unix(&socket).unwrap();
    let tcp = listen_tcp(&"127.0.0.1:-1".parse().unwrap(), &[]).unwrap();
    let address = tcp.address().unwrap();
    let (exits, _) = crossbeam_channel::unbounded();
    let door = |listener| Door::new(listener, Arc::new(echo));
    let poller = Poller::start(&exits).unwrap();
    serve(vec![door(unix), door(tcp)], &poller, &exits);
    Server {
        tcp: address,
        socket,
        _file: file,
        _folder: folder,
    }
}

impl Server {
    fn ask(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.tcp).unwrap();
        let _ = connection.write_all(request.as_bytes()); // what is refused early may be reset
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn status(&self, request: &str) -> String {
        self.ask(request).get(9..12).unwrap_or_default().to_owned()
    }
}

fn get(socket: &Path, target: &str) -> (u16, String) {
    let answer = client::get(socket, target).unwrap();
    (answer.status, answer.text(1 << 20).unwrap())
}

#[test]
fn one_server_on_tcp_and_a_socket() {
    let server = server();
    let answer = server.ask("GET /a?x&name=b%20c+d HTTP/1.1\r\nHost: localhost:3010\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n/a Get b c d"), "{answer}");
    assert!(answer.contains("Content-Length: 12\r\n"), "{answer}");
    let head = server.ask("HEAD /a HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));

    let mode = std::fs::metadata(&server.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let target = format!("/a?name={}", client::encoded("ä&ö"));
    assert_eq!(get(&server.socket, &target), (200, "/a Get ä&ö".into()));
    let posted = client::post(&server.socket, "/b").unwrap();
    assert_eq!(posted.text(100).unwrap(), "/b Post ");
    // A body is read, and its content does not matter.
    let posted = server.ask("POST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody");
    assert!(posted.ends_with("\r\n\r\n/b Post "), "{posted}");
}

#[test]
fn requests_that_make_no_sense() {
    let server = server();
    let many = "X: y\r\n".repeat(100);
    let long = "x".repeat(20_000);
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "200"),
        ("PUT / HTTP/1.1\r\n\r\n".to_owned(), "405"),
        ("\x16\x03\x01\r\n\r\n".to_owned(), "400"),
        ("GET a HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), "431"),
        (
            "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n".to_owned(),
            "413",
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "501",
        ),
        (
            "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
            "403",
        ),
        ("GET / HTTP/1.1\r\nHost: [::1]:99\r\n\r\n".to_owned(), "200"),
        ("GET /%zz%4 HTTP/1.1\r\n\r\n".to_owned(), "200"),
    ] {
        assert_eq!(server.status(&request), expected, "{request:?}");
    }
    // The system resets a connection with unread bytes, perhaps before the client sees the answer.
    let endless = server.status(&format!("GET / HTTP/1.1\r\nX: {long}"));
    assert!(["431", ""].contains(&&*endless), "{endless}");
}

/// Clients that say nothing delay no others, however many they are, and leave the Unix socket free.
#[test]
fn silent_clients_are_in_nobodys_way() {
    let server = server();
    let mut silent: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(server.tcp).unwrap())
        .collect();
    for _ in 0..20 {
        assert_eq!(server.status("GET / HTTP/1.1\r\n\r\n"), "200");
        assert_eq!(get(&server.socket, "/").0, 200);
    }
    // The first of them gave way, without an answer.
    let mut answer = Vec::new();
    silent[0].read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
}

/// Requests that are being answered keep their places, and one too many is told so.
#[test]
fn places_are_limited() {
    let tcp = listen_tcp(&"127.0.0.1:-1".parse().unwrap(), &[]).unwrap();
    let address = tcp.address().unwrap();
    let (begun, begins) = crossbeam_channel::unbounded();
    let (go_on, goes_on) = crossbeam_channel::bounded::<()>(0);
    let slow = move |_: &Request| {
        begun.send(()).unwrap();
        let _ = goes_on.recv();
        Response::text(200, "")
    };
    let (exits, _) = crossbeam_channel::unbounded();
    let poller = Poller::start(&exits).unwrap();
    serve(vec![Door::new(tcp, Arc::new(slow))], &poller, &exits);
    let ask = || {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        client
    };
    let status = |mut client: TcpStream| {
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned()
    };
    let clients: Vec<TcpStream> = (0..places::MOST_TCP).map(|_| ask()).collect();
    clients.iter().for_each(|_| begins.recv().unwrap());
    // The system resets a connection with unread bytes, perhaps before the client sees the answer.
    assert!(["503", ""].contains(&&*status(ask())));
    drop(go_on);
    for client in clients {
        assert_eq!(status(client), "200");
    }
}

#[test]
fn a_socket_takes_the_place_of_an_old_one_and_of_nothing_else() {
    let server = server();
    let (again, _file) = listen_unix(&server.socket).unwrap();
    assert!(matches!(again, Listener::Unix(_)));
    let file = server._folder.path().join("precious");
    std::fs::write(&file, "kept").unwrap();
    let refused = listen_unix(&file).err().unwrap();
    assert!(refused.to_string().contains("another file"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");

    let folder = server._folder.path().join("f".repeat(120));
    std::fs::create_dir(&folder).unwrap();
    let deep = folder.join("a.sock");
    let (listener, file) = listen_unix(&deep).unwrap();
    let (exits, _) = crossbeam_channel::unbounded();
    let poller = Poller::start(&exits).unwrap();
    serve(vec![Door::new(listener, Arc::new(echo))], &poller, &exits);
    assert_eq!(get(&deep, "/deep").0, 200);
    drop(file);
    assert!(!deep.exists());
    let gone = client::get(&deep, "/").err().unwrap();
    assert!(matches!(gone, ClientError::NoDaemon { .. }), "{gone}");
}
