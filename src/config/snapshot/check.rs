//! Checks the settings of a store without its server, so that `-check` reports a mistake before the
//! first snapshot does.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::address::url::{Url, folders};
use crate::config::section::Section;
use crate::config::suggest::closest;
use crate::thread::spawn_detached;

use super::{S3Store, SftpStore, WebDavStore};

/// Names that the query of a WebDAV store's URL may have.
const IN_QUERY: [&str; 3] = ["dir", "login", "secret"];

/// The server's address: the key that gives it, and the parsed value. None if there is no address,
/// or if it cannot be used, which is noted.
type StoreLocation<'a> = Option<(&'a str, Url)>;

/// Whether this program was built with the store.
pub(in crate::config) fn is_built_in(store: &str) -> bool {
    match store {
        "nats" => cfg!(feature = "store-nats"),
        "s3" => cfg!(feature = "store-s3"),
        "webdav" => cfg!(feature = "store-webdav"),
        "sftp" => cfg!(feature = "store-sftp"),
        _ => cfg!(feature = "store-file"),
    }
}

/// Notes a store in use that this program was built without.
pub(super) fn must_be_built_in(section: &Section, store: &str) {
    if !is_built_in(store) {
        section.note("store", not_built_in(store));
    }
}

fn not_built_in(store: &str) -> String {
    format!(
        "is {store:?}, but this harmonylite was built without it: choose another store, or build \
         with the feature store-{store}"
    )
}

pub(super) fn s3(section: &Section, store: &S3Store) {
    match (&store.access_key, &store.secret) {
        (Some(_), None) => section.note("access_key", "is set, so secret must be set too"),
        (None, Some(_)) => section.note("secret", "is set, so access_key must be set too"),
        _ => {}
    }
    no_way_up(section, store.path.as_deref());
    if store.endpoint.is_empty() {
        return;
    }
    if store.endpoint.contains('@') {
        let text = "holds a login: move it to access_key and secret, and leave host and port";
        return section.note("endpoint", text);
    }
    let place = server(section, Some(("endpoint", &store.endpoint)), HTTP);
    let Some((key, url)) = place else {
        return;
    };
    if !url.path.is_empty() || store.endpoint.contains('?') {
        let text = "has something behind the host, but must be host and port alone: the name of \
                    the bucket goes into bucket, a directory in it into path";
        section.note(key, text);
    }
}

pub(super) fn webdav(section: &Section, store: &WebDavStore, used: bool) {
    no_way_up(section, store.path.as_deref());
    let url = store.url.as_ref().map(|url| ("url", url.reveal()));
    let endpoint = store.endpoint.as_deref().map(|text| ("endpoint", text));
    let given = url.or(endpoint).filter(|given| is_meant(given, used));
    let Some((key, url)) = server(section, given, HTTP) else {
        return;
    };
    query(section, key, &url);
    let value = |name| {
        url.query(name).unwrap_or_else(|cause| {
            section.note(key, format!("is of no use: {cause}"));
            None
        })
    };
    let (dir, login, secret) = (value("dir"), value("login"), value("secret"));
    no_way_up_in(section, key, dir.as_deref().unwrap_or_default());
    let user = login.as_ref().or(url.server.user.as_ref());
    let password = secret.as_ref().or(url.server.password.as_ref());
    only_once(section, key, "path", dir.is_some() && store.path.is_some());
    logins(
        section,
        key,
        (user, &store.username),
        (password, &store.password),
    );
}

pub(super) fn sftp(section: &Section, store: &SftpStore, used: bool) {
    no_way_up(section, store.path.as_deref());
    host_key(section, store);
    let url = store.url.as_ref().map(|url| ("url", url.reveal()));
    let endpoint = store.endpoint.as_deref().map(|text| ("endpoint", text));
    let given = url.or(endpoint).filter(|given| is_meant(given, used));
    let Some((key, url)) = server(section, given, SFTP) else {
        return;
    };
    if url.names().next().is_some() {
        let text = "has a ?, which means nothing here: in a path or a login, write it as %3F";
        section.note(key, text);
    }
    match url.decoded_path() {
        Ok(path) => no_way_up_in(section, key, &path),
        Err(cause) => section.note(key, format!("is of no use: {cause}")),
    }
    let both = !url.path.is_empty() && store.path.is_some();
    only_once(section, key, "path", both);
    let (user, password) = (url.server.user.as_ref(), url.server.password.as_ref());
    logins(
        section,
        key,
        (user, &store.username),
        (password, &store.password),
    );
    if used && user.is_none() && store.username.is_none() {
        section.note("username", "is missing, and snapshot.store needs it");
    }
    if used && password.is_none() && store.password.is_none() && store.key_file.is_none() {
        let text = "is missing, and snapshot.store needs it, unless key_file is set";
        section.note("password", text);
    }
}

/// How long a folder may take to say what it is. Beyond that it is on a dead mount, and its store
/// says so later.
const LOOKS: Duration = Duration::from_secs(2);

/// Notes a path that is a file. A missing folder is no mistake: it is made later.
pub(super) fn file(section: &Section, folder: &str) {
    let (tell, told) = bounded(1);
    let path = PathBuf::from(folder);
    let look = move || {
        let _ = tell.send(path.exists() && !path.is_dir());
    };
    if spawn_detached("folder", look).is_ok() && told.recv_timeout(LOOKS) == Ok(true) {
        section.note(
            "path",
            format!("is {folder}, a file, but must be a directory"),
        );
    }
}

/// The allowed schemes, the first of which is the default, and an example.
type Schemes = (&'static [&'static str], &'static str);
const HTTP: Schemes = (&["https", "http"], "https://host:443/root");
const SFTP: Schemes = (&["sftp"], "sftp://host:22/snapshots");

/// Whether the address is to be checked. The Go version ships placeholders, such as `<user>`, in
/// the sections of unused stores.
fn is_meant((_, text): &(&str, &str), used: bool) -> bool {
    used || !(text.contains('<') && text.contains('>'))
}

fn server<'a>(
    section: &Section,
    given: Option<(&'a str, &str)>,
    schemes: Schemes,
) -> StoreLocation<'a> {
    let (key, text) = given?;
    let (schemes, example) = schemes;
    match Url::parse(text, schemes[0]) {
        Ok(url) if schemes.contains(&url.server.scheme.as_str()) => return Some((key, url)),
        Ok(_) => section.note(
            key,
            format!(
                "begins with a different scheme than {}: it must be like {example}",
                schemes.join(" or ")
            ),
        ),
        // The text is not quoted: it may be a password in the wrong line.
        Err(cause) => section.note(key, format!("must be like {example}, but {cause}")),
    }
    None
}

/// Notes unknown names. One is shown only if it nearly is a known one: it may be half a password.
fn query(section: &Section, key: &str, url: &Url) {
    for name in url.names().filter(|name| !IN_QUERY.contains(name)) {
        let meant = closest(name, IN_QUERY);
        let found = meant.map_or(String::new(), |meant| {
            format!(" ({name}; did you mean {meant}?)")
        });
        let all = IN_QUERY.join(", ");
        section.note(
            key,
            format!("has something behind its ? that is none of {all}{found}"),
        );
    }
}

/// Notes a value that is given twice: an operator may change the one that does not count.
fn only_once(section: &Section, address: &str, key: &str, both: bool) {
    if both {
        section.note(
            key,
            format!("is set, and {address} says it too: keep one of the two"),
        );
    }
}

/// Checks the login: each pair is the address's value and the key's value.
fn logins<T, U>(
    section: &Section,
    key: &str,
    user: (Option<&String>, &Option<T>),
    password: (Option<&String>, &Option<U>),
) {
    only_once(
        section,
        key,
        "username",
        user.0.is_some() && user.1.is_some(),
    );
    let both = password.0.is_some() && password.1.is_some();
    only_once(section, key, "password", both);
    let (somebody, secret) = (
        user.0.is_some() || user.1.is_some(),
        password.0.is_some() || password.1.is_some(),
    );
    if secret && !somebody {
        section.note("password", "is set, so username must be set too");
    }
}

fn no_way_up(section: &Section, path: Option<&str>) {
    no_way_up_in(section, "path", path.unwrap_or_default());
}

fn no_way_up_in(section: &Section, key: &str, path: &str) {
    if folders(path).is_err() {
        section.note(
            key,
            "leads upwards by a .., which is not allowed: write the directory without it",
        );
    }
}

fn host_key(section: &Section, store: &SftpStore) {
    let line = store.host_key.as_deref();
    if line.is_some_and(|line| crate::address::host_key::pinned(line).is_none()) {
        let text = "is not a public key; it must look like ssh-ed25519 AAAA…, as ssh-keyscan shows";
        section.note("host_key", text);
    }
}
