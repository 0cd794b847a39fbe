//! A folder on a WebDAV server.
//!
//! An object is uploaded under a temporary name and then moved. Some servers, or proxies in front
//! of them, refuse to move files. The first upload of a connection tests that with an empty file.
//! If the server refuses, objects are uploaded under their final names.

use std::io::{self, Read, Write};

use ureq::SendBody;

use self::http::Http;
use self::multistatus::names_in;
use super::part::part_name;
use super::{IfAbsent, Result, Store, StoreError};
use crate::address::secret::Secret;
use crate::address::server::encode;
use crate::address::url::{Url, folders};
use crate::config::snapshot::WebDavStore;

mod http;
mod login;
mod multistatus;

/// Largest accepted listing in bytes; a folder of snapshots has a shorter one.
const LISTING_BYTES: u64 = 4 << 20;

/// The form of the destination in a request to move a file.
#[derive(Clone, Copy, PartialEq)]
enum Move {
    ToUrl,
    /// A path. Behind a proxy that terminates TLS, the server takes our URL for one of a different
    /// server.
    ToPath,
    Refused,
}

struct WebDav {
    http: Http,
    /// Path of the server's root, as in URLs: empty or `/a/b`.
    root: String,
    /// Path of our folder, ending with `/`.
    folder: String,
    /// None until the first upload has tested it.
    moves: Option<Move>,
    address: String,
}

pub(super) fn open(settings: &WebDavStore, missing: IfAbsent) -> Result<impl Store + use<>> {
    let failed = |cause: String| StoreError::failed("webdav", "open", cause);
    let text = settings.url.as_ref().map(Secret::reveal);
    let text = text.or(settings.endpoint.as_deref()).unwrap_or_default();
    let url = Url::parse(text, "https").map_err(failed)?;
    if !matches!(url.server.scheme.as_str(), "http" | "https") {
        let server = &url.server;
        return Err(failed(format!("{server}: not an http or https address")));
    }
    let path = url
        .query("dir")
        .map_err(failed)?
        .or_else(|| settings.path.clone());
    let user = url.query("login").map_err(failed)?;
    let user = user
        .or_else(|| url.server.user.clone())
        .or_else(|| settings.username.clone());
    let password = url.query("secret").map_err(failed)?;
    let password = password
        .or_else(|| url.server.password.clone())
        .map(Secret::new)
        .or_else(|| settings.password.clone());
    let mut folder = format!("{}/", url.path);
    for name in folders(path.as_deref().unwrap_or_default()).map_err(failed)? {
        folder = format!("{folder}{}/", encode(name));
    }
    let server = url.server.to_string();
    let address = format!("webdav {server}{}", folder.trim_end_matches('/'));
    let password = password.unwrap_or_else(|| Secret::new(""));
    let mut store = WebDav {
        http: Http::new(server, user.map(|user| (user, password))),
        root: url.path,
        folder,
        moves: None,
        address,
    };
    let opened = match missing {
        IfAbsent::Make => store.ensure_folder().map(|()| true),
        IfAbsent::Refuse => store.has_folder(),
    };
    match opened {
        Ok(true) => Ok(store),
        Ok(false) => Err(StoreError::no_place(
            &store.address,
            "folder",
            "dir in snapshot.webdav.url, or snapshot.webdav.path,",
        )),
        Err(cause) => Err(store.failed("open the folder", cause)),
    }
}

type Tried<T> = std::result::Result<T, String>;

impl WebDav {
    fn failed(&self, doing: impl std::fmt::Display, cause: impl std::fmt::Display) -> StoreError {
        StoreError::failed(&self.address, doing, cause)
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }

    /// Whether the folder exists. This also settles the login before anything large is sent.
    fn has_folder(&mut self) -> Tried<bool> {
        let answer = self.http.ask("PROPFIND", &self.folder, &[("Depth", "0")])?;
        match answer.status().as_u16() {
            207 | 200 => Ok(true),
            404 | 409 => Ok(false),
            _ => Err(http::complaint(&answer)),
        }
    }

    fn ensure_folder(&mut self) -> Tried<()> {
        if self.has_folder()? {
            return Ok(());
        }
        let folder = self.folder.clone();
        let below = &folder[self.root.len() + 1..];
        let mut path = format!("{}/", self.root);
        for name in below.split_terminator('/') {
            path = format!("{path}{name}/");
            let answer = self.http.ask("MKCOL", &path, &[])?;
            match answer.status().as_u16() {
                201 | 200 => log::info!("made the folder {path} on the webdav server"),
                405 | 301 => {} // it is there
                _ => {
                    return Err(format!(
                        "make the folder {path}: {}",
                        http::complaint(&answer)
                    ));
                }
            }
        }
        let answer = self.http.ask("PROPFIND", &folder, &[("Depth", "0")])?;
        match answer.status().as_u16() {
            207 | 200 => Ok(()),
            _ => Err(http::complaint(&answer)),
        }
    }

    fn upload(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Tried<()> {
        let path = self.path(name);
        let answer = self.http.send(&path, size, SendBody::from_reader(from))?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(http::complaint(&answer))
        }
    }

    fn delete(&mut self, name: &str) -> Tried<()> {
        let answer = self.http.ask("DELETE", &self.path(name), &[])?;
        match answer.status().as_u16() {
            200..=299 | 404 | 410 => Ok(()),
            _ => Err(http::complaint(&answer)),
        }
    }

    fn rename(&mut self, how: Move, from: &str, to: &str) -> Tried<()> {
        let path = self.path(to);
        let destination = match how {
            Move::ToUrl => format!("{}{path}", self.http.server()),
            _ => path,
        };
        let headers = [("Destination", destination.as_str()), ("Overwrite", "T")];
        let answer = self.http.ask("MOVE", &self.path(from), &headers)?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!(
                "move it to its place: {}",
                http::complaint(&answer)
            ))
        }
    }

    /// Finds out once per connection how to move files.
    fn try_moving(&mut self, name: &str) -> Tried<Move> {
        if let Some(known) = self.moves {
            return Ok(known);
        }
        let [from, to] = [part_name(name), part_name(name)];
        self.upload(&from, 0, &mut io::empty())?;
        let mut found = Move::Refused;
        for how in [Move::ToUrl, Move::ToPath] {
            match self.rename(how, &from, &to) {
                Ok(()) => {
                    found = how;
                    break;
                }
                Err(cause) => log::debug!("{}: {cause}", self.address),
            }
        }
        self.delete(if found == Move::Refused { &from } else { &to })?;
        if found == Move::Refused {
            log::warn!(
                "{} does not move files: readers may see unfinished uploads",
                self.address
            );
        }
        self.moves = Some(found);
        Ok(found)
    }

    fn write(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Tried<()> {
        self.ensure_folder()?;
        let how = self.try_moving(name)?;
        let target = match how {
            Move::Refused => name.to_string(),
            _ => part_name(name),
        };
        let mut result = self.upload(&target, size, from);
        if how != Move::Refused {
            result = result.and_then(|()| self.rename(how, &target, name));
        }
        if result.is_err() {
            let _ = self.delete(&target);
        }
        result
    }

    fn read(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Tried<bool> {
        let mut answer = self.http.ask("GET", &self.path(name), &[])?;
        match answer.status().as_u16() {
            404 | 410 => return Ok(false),
            200 => {}
            _ => return Err(http::complaint(&answer)),
        }
        let copied = io::copy(&mut answer.body_mut().as_reader(), into);
        copied
            .and_then(|_| into.flush())
            .map_err(|error| http::explain(&error))?;
        Ok(true)
    }

    fn names(&mut self) -> Tried<Vec<String>> {
        let folder = self.folder.clone();
        let mut answer = self.http.ask("PROPFIND", &folder, &[("Depth", "1")])?;
        if answer.status().as_u16() != 207 {
            return Err(http::complaint(&answer));
        }
        let body = answer.body_mut().with_config().limit(LISTING_BYTES);
        let xml = body.read_to_string().map_err(|error| error.to_string())?;
        Ok(names_in(&xml))
    }
}

impl Store for WebDav {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        let result = self.write(name, size, from);
        result.map_err(|cause| self.failed(format_args!("put {name}"), cause))
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        match self.read(name, into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::not_found(&self.address, name)),
            Err(cause) => Err(self.failed(format_args!("get {name}"), cause)),
        }
    }

    fn list(&mut self) -> Result<Vec<String>> {
        let names = self.names();
        names.map_err(|cause| self.failed("list", cause))
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let result = self.delete(name);
        result.map_err(|cause| self.failed(format_args!("remove {name}"), cause))
    }
}
