//! The listeners: TCP addresses, and the Unix socket beside the database.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::connection::{Connection, Socket};
use crate::address::configured::ListenAddress;

/// Most bytes of a socket's name in the kernel, without the zero behind it.
const LONGEST_NAME: usize = 107;

/// Connections that may wait to be accepted.
const WAITING: i32 = 32;

/// A listener on a bound address. It never blocks.
pub enum Listener {
    /// On TCP, with the names under which it is asked.
    Tcp(TcpListener, Arc<[String]>),
    /// On a Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// The address of a TCP listener, with its real port; none for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener, _) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    pub(super) fn accept(&self) -> io::Result<Connection> {
        Ok(match self {
            Listener::Tcp(listener, hosts) => {
                Connection::new(Socket::Tcp(listener.accept()?.0), Some(hosts.clone()))
            }
            Listener::Unix(listener) => Connection::new(Socket::Unix(listener.accept()?.0), None),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener, _) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Listens on TCP. `::` means all interfaces, IPv4 and IPv6, or IPv4 alone if there is no IPv6.
/// `names` are further names under which it is asked.
pub fn listen_tcp(address: &ListenAddress, names: &[String]) -> io::Result<Listener> {
    let port = address.port.unwrap_or(0);
    let host = address.host.as_str();
    let bound = match TcpListener::bind((host, port)) {
        Err(e) if host == "::" && is_without_ipv6(&e) => TcpListener::bind(("0.0.0.0", port)),
        bound => bound,
    }?;
    bound.set_nonblocking(true)?;
    let names = names.iter().cloned().chain([host.to_owned()]).collect();
    Ok(Listener::Tcp(bound, names))
}

fn is_without_ipv6(e: &io::Error) -> bool {
    let error = e.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    e.kind() == ErrorKind::AddrNotAvailable || error == Some(rustix::io::Errno::AFNOSUPPORT)
}

/// The file of a Unix socket; dropping it removes the file.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens on a Unix socket that only this user and root can open. Replaces the socket of an
/// earlier process, so the caller must know that no other process listens there. Fails if a file of
/// a different kind has that name.
pub fn listen_unix(path: &Path) -> io::Result<(Listener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other("another file has that name")),
        Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, so the file never has a wider one.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    with_short_name(path, |name| Ok(bind(&socket, &SocketAddrUnix::new(name)?)?))?;
    listen(&socket, WAITING)?;
    let file = SocketFile(path.to_owned());
    Ok((Listener::Unix(UnixListener::from(socket)), file))
}

/// Calls `f` with a name of `path` that is short enough for a socket. A path that is too long is
/// replaced by one through its open directory in `/proc`.
pub(super) fn with_short_name<T>(
    path: &Path,
    f: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().len() <= LONGEST_NAME {
        return f(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return f(path);
    };
    let folder = File::open(folder)?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    f(&Path::new(&short).join(name))
}
