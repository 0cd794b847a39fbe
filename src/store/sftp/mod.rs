//! A folder on a server that is reached by SSH.
//!
//! An object is uploaded under a temporary name, synced if the server supports it, and renamed.
//! With the means of the library, OpenSSH does not rename onto an existing file. So that file is
//! removed first, and for a moment the object does not exist.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ssh2::{ErrorCode, OpenFlags, OpenType, RenameFlags, Session, Sftp};

use super::part::part_name;
use super::{IfAbsent, Result, SILENCE, Store, StoreError};
use crate::address::secret::Secret;
use crate::address::url::{Url, folders};
use crate::config::snapshot::SftpStore;

mod connect;
mod host_key;

/// Bytes under way at a time. A network that is slower than this many bytes in `SILENCE` counts as
/// broken.
const BUFFER: usize = 128 * 1024;
/// SFTP's error numbers.
const NO_SUCH_FILE: ErrorCode = ErrorCode::SFTP(2);
const UNSUPPORTED: ErrorCode = ErrorCode::SFTP(8);
const NO_SUCH_PATH: ErrorCode = ErrorCode::SFTP(10);
/// How long each cleanup request may take after a failure.
const LAST_WORDS: Duration = Duration::from_secs(3);

struct SftpFolder {
    // Their order matters: the library sends a request over the session when `sftp` is dropped.
    sftp: Sftp,
    session: Session,
    folder: PathBuf,
    address: String,
}

pub(super) fn open(settings: &SftpStore, missing: IfAbsent) -> Result<impl Store + use<>> {
    let failed = |cause: String| StoreError::failed("sftp", "open", cause);
    let text = settings.url.as_ref().map(Secret::reveal);
    let text = text.or(settings.endpoint.as_deref()).unwrap_or_default();
    let url = Url::parse(text, "sftp").map_err(failed)?;
    let path = match url.decoded_path().map_err(failed)? {
        path if !path.is_empty() => path,
        _ => settings.path.clone().unwrap_or_default(),
    };
    let names = folders(&path).map_err(failed)?;
    // A path without a leading `/` is relative to the folder in which the login starts.
    let top = if path.starts_with('/') { "/" } else { "." };
    let shown = format!("sftp {}/{}", url.server.host_port(connect::PORT), path);
    let address = shown.trim_end_matches('/').to_string();
    let failed = |doing: &str, cause: String| StoreError::failed(&address, doing, cause);
    let session =
        connect::connect(settings, &url.server).map_err(|cause| failed("connect", cause))?;
    let sftp = session
        .sftp()
        .map_err(|cause| failed("start sftp", explain(&cause)))?;
    let mut folder = PathBuf::from(top);
    for name in names {
        folder.push(name);
        if missing == IfAbsent::Refuse {
            continue;
        }
        make(&sftp, &folder).map_err(|cause| {
            failed(
                &format!("make the folder {}", folder.display()),
                explain(&cause),
            )
        })?;
    }
    // This also applies if there was nothing to create.
    match sftp.stat(&folder) {
        Err(cause) if is_absent(&cause) && missing == IfAbsent::Refuse => {
            return Err(StoreError::no_place(
                &address,
                "folder",
                "the path in snapshot.sftp.url, or snapshot.sftp.path,",
            ));
        }
        there => there.map_err(|cause| failed("open the folder", explain(&cause)))?,
    };
    Ok(SftpFolder {
        sftp,
        session,
        folder,
        address,
    })
}

fn make(sftp: &Sftp, folder: &Path) -> std::result::Result<(), ssh2::Error> {
    if sftp.stat(folder).is_ok() {
        return Ok(());
    }
    sftp.mkdir(folder, 0o700).or_else(|error| {
        // A different node may have been faster.
        sftp.stat(folder).map(drop).map_err(|_| error)
    })?;
    log::info!("made the folder {} on the sftp server", folder.display());
    Ok(())
}

impl SftpFolder {
    fn failed(&self, doing: &str, name: &str, cause: &io::Error) -> StoreError {
        let doing = format!("{doing} {name}");
        let doing = doing.trim_end();
        match self.lost() {
            Some(lost) => {
                StoreError::failed(&self.address, doing, format_args!("{lost} ({cause})"))
            }
            None => StoreError::failed(&self.address, doing, cause),
        }
    }

    /// How the connection failed, if it is unusable.
    fn lost(&self) -> Option<&'static str> {
        lost(&ssh2::Error::last_session_error(&self.session)?)
    }

    /// Sets how long the server may be silent from now on. When the library drops a file it closes
    /// it and waits for the answer, even on a connection that it knows is gone.
    fn allow_silence(&self, silence: Duration) {
        let silence = match self.lost() {
            Some(_) => Duration::from_millis(50),
            None => silence,
        };
        self.session.set_timeout(silence.as_millis() as u32);
    }

    fn write(&self, part: &Path, name: &str, from: &mut dyn Read) -> io::Result<()> {
        let flags = OpenFlags::WRITE | OpenFlags::EXCLUSIVE;
        let file = self.sftp.open_mode(part, flags, 0o600, OpenType::File);
        let mut file = file.map_err(|error| plain(&error))?;
        copy(from, &mut file).inspect_err(|_| self.allow_silence(LAST_WORDS))?;
        match file.fsync() {
            Err(error) if error.code() != UNSUPPORTED && !is_unknown_extension(&error) => {
                return Err(plain(&error));
            }
            _ => {}
        }
        file.close().map_err(|error| plain(&error))?;
        let target = self.folder.join(name);
        self.rename(part, &target).map_err(|error| plain(&error))
    }

    fn rename(&self, part: &Path, target: &Path) -> std::result::Result<(), ssh2::Error> {
        let flags = RenameFlags::ATOMIC | RenameFlags::OVERWRITE | RenameFlags::NATIVE;
        let moved = self.sftp.rename(part, target, Some(flags));
        if moved.is_ok() || self.sftp.stat(target).is_err() {
            return moved;
        }
        self.sftp.unlink(target)?;
        self.sftp.rename(part, target, Some(flags))
    }

    fn read(&self, name: &str, into: &mut (dyn Write + Send)) -> io::Result<bool> {
        let mut file = match self.sftp.open(self.folder.join(name)) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(plain(&error)),
        };
        copy(&mut file, into).inspect_err(|_| self.allow_silence(LAST_WORDS))?;
        into.flush()?;
        Ok(true)
    }
}

/// Like `io::copy`, with a buffer large enough to keep a slow connection busy.
fn copy(from: &mut dyn Read, into: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => into.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_absent(error: &ssh2::Error) -> bool {
    matches!(error.code(), NO_SUCH_FILE | NO_SUCH_PATH)
}

/// Whether the library itself reports that the server lacks the extension.
fn is_unknown_extension(error: &ssh2::Error) -> bool {
    const METHOD_NOT_SUPPORTED: ErrorCode = ErrorCode::Session(-33);
    error.code() == METHOD_NOT_SUPPORTED
}

fn lost(error: &ssh2::Error) -> Option<&'static str> {
    match error.code() {
        ErrorCode::Session(-7 | -13 | -43) => Some("connection lost"),
        ErrorCode::Session(-9 | -30) => Some("the server does not answer"),
        _ => None,
    }
}

/// The error's text without the library's number.
fn explain(error: &ssh2::Error) -> String {
    match error.code() {
        // OpenSSH reports this number for any failure.
        ErrorCode::SFTP(4) => "the server failed to do it (disk full, or no right to?)".into(),
        _ => error.message().to_string(),
    }
}

fn plain(error: &ssh2::Error) -> io::Error {
    io::Error::other(explain(error))
}

impl Drop for SftpFolder {
    /// The library closes the session with the server next.
    fn drop(&mut self) {
        self.allow_silence(LAST_WORDS);
    }
}

impl Store for SftpFolder {
    fn address(&self) -> &str {
        &self.address
    }

    fn put(&mut self, name: &str, _size: u64, from: &mut dyn Read) -> Result<()> {
        self.allow_silence(SILENCE);
        let part = self.folder.join(part_name(name));
        self.write(&part, name, from).map_err(|cause| {
            let error = self.failed("put", name, &cause);
            self.allow_silence(LAST_WORDS);
            let _ = self.sftp.unlink(&part);
            error
        })
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> Result<()> {
        self.allow_silence(SILENCE);
        match self.read(name, into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::not_found(&self.address, name)),
            Err(cause) => Err(self.failed("get", name, &cause)),
        }
    }

    fn list(&mut self) -> Result<Vec<String>> {
        self.allow_silence(SILENCE);
        let entries = self.sftp.readdir(&self.folder);
        let entries = entries.map_err(|cause| self.failed("list", "", &plain(&cause)))?;
        let files = entries.iter().filter(|(_, found)| !found.is_dir());
        let names = files.filter_map(|(path, _)| path.file_name());
        Ok(names
            .map(|name| name.to_string_lossy().into_owned())
            .collect())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.allow_silence(SILENCE);
        match self.sftp.unlink(&self.folder.join(name)) {
            Err(cause) if !is_absent(&cause) => Err(self.failed("remove", name, &plain(&cause))),
            _ => Ok(()),
        }
    }
}
