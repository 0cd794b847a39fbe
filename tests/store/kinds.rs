//! Every kind of store, through every check.
#![allow(deprecated)] // the whole nats crate is

use std::fs;
use std::io::{Read, Write};

use harmonylite::config::snapshot::{FileStore, StoreSettings as Settings};
use s3::creds::Credentials;
use s3::{Bucket, Region};

use crate::bench::{Bench, NATS_USER};
use crate::conformance;
use crate::data::{Expected, SECRET};
use crate::refusals;
use crate::servers::s3::{KEY, SECRET_KEY, rclone, weed};
use crate::servers::webdav::{Login, apache, apache_without_move};
use crate::servers::{nats, sftp};
use crate::trouble;

#[test]
fn nats_server() {
    let mut bench = nats::start("1GB");
    conformance::check(&bench);
    others_can_read(&bench);
    refusals::wrong_password(&bench);
    trouble::check(&mut bench);
}

/// The vendors' own clients find the objects and read them.
fn others_can_read(bench: &Bench) {
    let mut store = bench.open("official");
    conformance::put(store.as_mut(), "snapshot-1.zst", 1, 300_000);
    let options = ::nats::Options::with_user_pass(NATS_USER, SECRET);
    let connection = options.connect(format!("127.0.0.1:{}", bench.port));
    let context = ::nats::jetstream::new(connection.unwrap());
    let bucket = context.object_store("official").unwrap();
    let mut bytes = Vec::new();
    let mut object = bucket.get("snapshot-1.zst").unwrap();
    object.read_to_end(&mut bytes).unwrap();
    let mut expected = Expected::new(1, 300_000);
    expected.write_all(&bytes).unwrap();
    assert!(expected.is_complete());
}

#[test]
fn s3_seaweedfs() {
    let Some(mut bench) = weed() else { return };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    refusals::s3(&bench);
    assert_eq!(
        uploads(&bench, "conform"),
        0,
        "a failed put aborts its upload"
    );
    trouble::check_cuts(&bench);
    assert_eq!(
        uploads(&bench, "trouble"),
        1,
        "the one that was cut and could not be aborted"
    );
    let mut store = bench.open("trouble");
    conformance::put(store.as_mut(), "kept", 1, crate::data::LARGE);
    assert_eq!(uploads(&bench, "trouble"), 0);
    trouble::end(&mut bench);
}

/// Number of multipart uploads that are neither complete nor aborted.
fn uploads(bench: &Bench, bucket: &str) -> usize {
    let region = Region::Custom {
        region: "us-east-1".into(),
        endpoint: format!("http://127.0.0.1:{}", bench.port),
    };
    let login = Credentials::new(Some(KEY), Some(SECRET_KEY), None, None, None).unwrap();
    let bucket = Bucket::new(bucket, region, login)
        .unwrap()
        .with_path_style();
    let query = [("uploads", ""), ("prefix", "some/folder/")];
    let query = query.map(|(k, v)| (k.into(), v.into())).into();
    let answer = bucket.with_extra_query(query).unwrap().get_object("/");
    answer
        .unwrap()
        .as_str()
        .unwrap()
        .matches("<Upload>")
        .count()
}

#[test]
fn s3_rclone() {
    let Some(mut bench) = rclone(None) else {
        return;
    };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    trouble::check(&mut bench);
}

#[test]
fn webdav_basic() {
    let Some(mut bench) = apache(Login::Basic, None) else {
        return;
    };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    refusals::webdav(&bench);
    trouble::check(&mut bench);
}

#[test]
fn webdav_digest() {
    let Some(mut bench) = apache(Login::Digest, None) else {
        return;
    };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    trouble::check(&mut bench);
}

/// Without a path, objects lie directly under their names.
#[test]
fn webdav_without_move() {
    let Some(bench) = apache_without_move() else {
        return;
    };
    let mut store = bench.open("direct");
    conformance::put(store.as_mut(), "word", 1, 100_000);
    conformance::expect(store.as_mut(), "word", 1, 100_000);
    let mut from = crate::data::Failing(crate::data::Pattern::new(1, 1000));
    bench.error(store.put("torn", 5000, &mut from));
    let mut store = bench.open("direct");
    conformance::expect_none(store.as_mut(), "torn");
    assert_eq!(conformance::names(store.as_mut()), ["word"]);
}

#[test]
fn sftp_openssh() {
    let Some(mut bench) = sftp::sshd(None) else {
        return;
    };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    refusals::sshd(&bench);
    trouble::check(&mut bench);
}

#[test]
fn sftp_rclone_with_password() {
    let Some(bench) = sftp::rclone() else {
        return;
    };
    conformance::check(&bench);
    refusals::wrong_password(&bench);
    refusals::sftp_by_url(&bench);
    // Without cuts: this server takes half a minute to notice each.
}

#[test]
fn file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("other"), "").unwrap();
    let path = folder.path().to_path_buf();
    let bench = Bench {
        name: "file",
        kind: "file",
        port: 0,
        settings: Box::new(move |way| {
            Settings::File(FileStore {
                path: path.join(&way.place),
                database: path.join("none.db"),
            })
        }),
        process: None,
    };
    conformance::check(&bench);
    let text = bench.error(bench.try_open(&bench.way("no/such/folder")));
    assert!(text.contains("is its disk mounted?"), "{text}");
    // The disk goes away while it is in use.
    let mut store = bench.open("gone");
    fs::remove_dir(folder.path().join("gone")).unwrap();
    bench.error(store.put("word", 1, &mut &b"x"[..]));
    bench.error(store.get("word", &mut Vec::new()));
    bench.error(store.list());
    bench.error(store.remove("word"));
}
