//! Mistakes in the settings, and the alternative ways to write them.

use std::fs;

use harmonylite::address::secret::Secret;
use harmonylite::config::snapshot::{S3Store, SftpStore, StoreSettings as Settings, WebDavStore};
use harmonylite::store::{Result, Store, open};
use harmonylite::stream::StreamError;

use crate::bench::Bench;
use crate::conformance::{expect, put};
use crate::data::SECRET;
use crate::servers::{USER, s3, sftp, webdav};

/// The `Store` of these settings; none of them is nats.
fn try_open(settings: &Settings) -> Result<Box<dyn Store>> {
    open(settings, "changes", &|| Err(StreamError::Stopped))
}

#[track_caller]
fn refused(bench: &Bench, settings: Settings, words: &str) {
    let text = bench.error(try_open(&settings));
    assert!(text.contains(words), "{text}");
}

#[track_caller]
fn works(settings: Settings) {
    let mut store = try_open(&settings).unwrap_or_else(|error| panic!("{error}"));
    put(store.as_mut(), "word", 1, 10);
    expect(store.as_mut(), "word", 1, 10);
}

pub fn wrong_password(bench: &Bench) {
    let mut way = bench.way("refusal");
    way.password = "wrong-s3cr3t".into();
    bench.error(bench.try_open(&way));
}

pub fn s3(bench: &Bench) {
    let with = |change: &dyn Fn(&mut S3Store)| {
        let mut settings = s3::settings(&bench.way("refusal"));
        change(&mut settings);
        Settings::S3(settings)
    };
    let nobody = with(&|s| (s.access_key, s.secret) = (None, None));
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_none() {
        refused(bench, nobody, "no login");
    }
    let unknown = with(&|s| s.access_key = Some(Secret::new("AKNOBODY")));
    refused(bench, unknown, "InvalidAccessKeyId");
    refused(bench, with(&|s| s.bucket = "NO_name".into()), "ucket");
    // The scheme in the endpoint counts.
    works(with(&|s| {
        s.use_ssl = true;
        s.endpoint = format!("http://{}", s.endpoint);
    }));
    works(with(&|s| s.path = None));
    let tls = with(&|s| s.use_ssl = true);
    refused(bench, tls, "open the bucket");
}

pub fn webdav(bench: &Bench) {
    let with = |change: &dyn Fn(&mut WebDavStore)| {
        let mut settings = webdav::settings(&bench.way("refusal"));
        change(&mut settings);
        Settings::WebDav(settings)
    };
    let nobody = with(&|s| s.username = None);
    refused(bench, nobody, "asks for a login");
    let elsewhere = format!("http://127.0.0.1:{}/no/such", bench.port);
    let elsewhere = with(&|s| s.endpoint = Some(elsewhere.clone()));
    refused(bench, elsewhere, "make the folder");
    let encoded = SECRET.replace('%', "%25").replace('+', "%2B");
    let url = format!(
        "http://127.0.0.1:{}/dav/?dir=/by/url&login={USER}&secret={encoded}",
        bench.port
    );
    let empty = WebDavStore {
        url: Some(Secret::new(url)),
        endpoint: None,
        path: None,
        username: None,
        password: None,
    };
    works(Settings::WebDav(empty));
    let root = with(&|s| s.path = None);
    works(root);
}

pub fn sshd(bench: &Bench) {
    let with = |change: &dyn Fn(&mut SftpStore)| match (bench.settings)(&bench.way("refusal")) {
        Settings::Sftp(mut settings) => {
            change(&mut settings);
            Settings::Sftp(settings)
        }
        other => other,
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        Some(file)
    };
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVsZ2hvcm5lbGdob3JuZWxnaG9ybmVsZ2hvcm5lbGc";
    let here = format!("[127.0.0.1]:{} {key}\n", bench.port);
    let unknown = with(&|s| s.known_hosts = file("none", "other ssh-rsa AAAA\n"));
    refused(bench, unknown, "unknown server: its key SHA256:");
    let other = with(&|s| s.known_hosts = file("other", &here));
    refused(bench, other, "a different server answers");
    let pinned = with(&|s| s.host_key = Some(key.into()));
    refused(bench, pinned, "a different server answers");
    let no_key = with(&|s| s.host_key = Some(SECRET.into()));
    refused(bench, no_key, "host_key: not a public key");
    let no_file = with(&|s| s.known_hosts = Some("/no/such".into()));
    refused(bench, no_file, "read /no/such");
    works(with(&|s| {
        s.known_hosts = None;
        s.insecure_ignore_host_key = true;
    }));
    let nobody = with(&|s| s.username = None);
    refused(bench, nobody, "no username");
    let keyless = with(&|s| s.key_file = None);
    refused(bench, keyless, "neither password nor key_file");
    works(with(&|s| s.path = Some("in/the/way".into())));
    // A file stands where a folder should be.
    refused(
        bench,
        with(&|s| s.path = Some("in/the/way/word/below".into())),
        "make the folder",
    );
    let up = with(&|s| s.path = Some("../up".into()));
    refused(bench, up, "..");
}

pub fn sftp_by_url(bench: &Bench) {
    let Settings::Sftp(known) = (bench.settings)(&bench.way("url")) else {
        unreachable!("it is an sftp server");
    };
    let encoded: String = SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let url = |login: &str| SftpStore {
        url: Some(Secret::new(format!(
            "sftp://{login}@127.0.0.1:{}/by/url",
            bench.port
        ))),
        endpoint: None,
        username: None,
        host_key: known.host_key.clone(),
        ..sftp::empty(0)
    };
    works(Settings::Sftp(url(&format!("{USER}:{encoded}"))));
    let wrong = Settings::Sftp(url(&format!("{USER}:wrong-s3cr3t")));
    refused(bench, wrong, "log in as tester");
}
