//! A server that accepts a connection and says nothing counts as gone, in bounded time.
//!
//! All stores share one test, since it mostly waits.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use harmonylite::config::snapshot::StoreSettings as Settings;
use harmonylite::store::{CONNECT, SILENCE};

use crate::bench::{Bench, Way};
use crate::data::{Expected, LARGE, Pattern};
use crate::proxy::Proxy;
use crate::servers::webdav::{Login, apache};
use crate::servers::{nats, s3, sftp, webdav};

/// The bound: a connection, a piece that is taken in part and then not at all, and a last exchange.
const BOUND: Duration = Duration::from_secs(CONNECT.as_secs() + 3 * SILENCE.as_secs() + 10);

#[test]
fn silence_ends_in_an_error() {
    thread::scope(|scope| {
        scope.spawn(|| from_the_start("s3", &|way| Settings::S3(s3::settings(way))));
        scope.spawn(|| from_the_start("webdav", &|way| Settings::WebDav(webdav::settings(way))));
        scope.spawn(|| {
            from_the_start("sftp", &|way| {
                let mut settings = sftp::empty(way.port);
                settings.insecure_ignore_host_key = true;
                Settings::Sftp(settings)
            });
        });
        let benches = [
            Some(nats::start("1GB")),
            apache(Login::Basic, None),
            sftp::sshd(None),
        ];
        for bench in benches.into_iter().flatten() {
            scope.spawn(|| in_the_middle(bench));
        }
    });
}

fn from_the_start(kind: &'static str, settings: &(dyn Fn(&Way) -> Settings + Sync)) {
    // The kernel completes the connections; no program reads from them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Way {
        port,
        password: crate::data::SECRET.into(),
        place: "silent".into(),
    };
    let settings = settings(&way);
    let bench = Bench {
        name: "silent from the start",
        kind,
        port,
        settings: Box::new(move |_| settings.clone()),
        process: None,
    };
    let began = Instant::now();
    bench.error(bench.try_open(&way));
    assert!(began.elapsed() < BOUND, "{kind}: {:?}", began.elapsed());
}

/// Silences the server in the middle of an upload and of a download.
fn in_the_middle(bench: Bench) {
    let mut direct = bench.open("silent");
    crate::conformance::put(direct.as_mut(), "large", 1, LARGE);
    let proxies = [Proxy::new(bench.port), Proxy::new(bench.port)];
    thread::scope(|scope| {
        for (proxy, upload) in proxies.iter().zip([true, false]) {
            let bench = &bench;
            scope.spawn(move || {
                let way = Way {
                    port: proxy.port,
                    ..bench.way("silent")
                };
                let mut store = bench.try_open(&way).unwrap();
                // The silence comes before the kernel's buffers can hold all the rest.
                proxy.fall_silent_after(LARGE / 64);
                let began = Instant::now();
                bench.error(if upload {
                    store.put("stuck", LARGE, &mut Pattern::new(2, LARGE))
                } else {
                    store.get("large", &mut Expected::new(1, LARGE))
                });
                drop(store);
                let name = bench.name;
                assert!(began.elapsed() < BOUND, "{name}: {:?}", began.elapsed());
            });
        }
    });
    crate::conformance::expect_none(direct.as_mut(), "stuck");
}
