//! The other servers of the cluster: listed one by one, or found behind a name.
//!
//! `dns://name:port/?min=3&interval_ms=1000` stands for all A and AAAA addresses of the name. The
//! server starts with the addresses of the first answer and waits at most two seconds for it, so a
//! name service that is down or slow delays nobody for longer. As long as fewer than `min`
//! addresses are known, the name is looked up again, and the server is told the new addresses.
//! Addresses are only ever added: a node that is away for a while has none, and still belongs to
//! the cluster.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::sections;
use crate::address::server::Address;
use crate::thread::spawn_detached;

const FIRST_RESOLVE: Duration = Duration::from_secs(2);
const DEFAULT_MIN: usize = 2;
const DEFAULT_INTERVAL_MS: u64 = 1000;

#[derive(Clone)]
struct Name {
    address: Address,
    min: usize,
    interval: Duration,
}

#[derive(Clone)]
pub(super) struct ServerPeers {
    fixed: Vec<String>,
    names: Vec<Name>,
}

impl ServerPeers {
    pub(super) fn parse(urls: &[String]) -> Result<ServerPeers, String> {
        let mut peers = ServerPeers {
            fixed: Vec::new(),
            names: Vec::new(),
        };
        for url in urls {
            let address: Address = url.parse()?;
            if address.scheme == "dns" {
                peers.names.push(Name::parse(address)?);
            } else {
                peers.fixed.push(sections::route(&address));
            }
        }
        Ok(peers)
    }

    /// The routes known after at most two seconds.
    pub(super) fn resolve_first(&self) -> Vec<String> {
        if self.names.is_empty() {
            return self.fixed.clone();
        }
        let (result, found) = bounded(1);
        let peers = self.clone();
        let resolve_all = move || drop(result.send(peers.resolve_all().0));
        let started = spawn_detached("nats-resolve", resolve_all).is_ok();
        let found = if started {
            found.recv_timeout(FIRST_RESOLVE).ok()
        } else {
            None
        };
        found.unwrap_or_else(|| self.fixed.clone())
    }

    /// Looks names up until each has enough addresses, and passes all routes to `tell` when there
    /// are new ones. Ends when the returned sender is dropped.
    pub(super) fn keep_asking(
        self,
        known: Vec<String>,
        tell: impl Fn(&[String]) + Send + 'static,
    ) -> Option<Sender<()>> {
        let interval = self.names.iter().map(|name| name.interval).min()?;
        let (going, stop) = bounded::<()>(0);
        let mut known = BTreeSet::from_iter(known);
        let ask = move || {
            loop {
                let (found, enough) = self.resolve_all();
                let before = known.len();
                known.extend(found);
                if stop
                    .recv_timeout(Duration::ZERO)
                    .is_err_and(|error| error.is_disconnected())
                {
                    return;
                }
                if known.len() > before {
                    let routes: Vec<_> = known.iter().cloned().collect();
                    log::info!("nats-server: {} routes to peers are known", routes.len());
                    tell(&routes);
                }
                if enough
                    || stop
                        .recv_timeout(interval)
                        .is_err_and(|e| e.is_disconnected())
                {
                    return;
                }
            }
        };
        match spawn_detached("nats-peers", ask) {
            Ok(()) => Some(going),
            Err(error) => {
                log::warn!("look for more peers: {error}");
                None
            }
        }
    }

    /// All routes, and whether every name has at least `min` addresses. Blocks on the name service.
    fn resolve_all(&self) -> (Vec<String>, bool) {
        let mut routes = self.fixed.clone();
        let mut enough = true;
        for name in &self.names {
            let found = name.resolve();
            enough &= found.len() >= name.min;
            routes.extend(found);
        }
        (routes, enough)
    }
}

impl Name {
    fn parse(address: Address) -> Result<Name, String> {
        fn number<T: std::str::FromStr>(
            address: &Address,
            key: &str,
            default: T,
        ) -> Result<T, String> {
            let text = address.query(key).map(str::parse);
            text.unwrap_or(Ok(default))
                .map_err(|_| format!("peer {address}: {key} is no number"))
        }
        let min = number(&address, "min", DEFAULT_MIN)?;
        let interval = number(&address, "interval_ms", DEFAULT_INTERVAL_MS)?;
        // At least 10 ms, so that no setting makes this a busy loop.
        Ok(Name {
            address,
            min,
            interval: Duration::from_millis(interval.max(10)),
        })
    }

    fn resolve(&self) -> BTreeSet<String> {
        match self
            .address
            .host_port(sections::ROUTE_PORT)
            .to_socket_addrs()
        {
            Ok(found) => found
                .map(|at: SocketAddr| self.address.to_url("nats", &at.to_string()))
                .collect(),
            Err(error) => {
                log::warn!("look up peers at {}: {error}", self.address);
                BTreeSet::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(urls: &[&str]) -> ServerPeers {
        ServerPeers::parse(&urls.iter().map(|url| url.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_name_stands_for_its_addresses() {
        let peers = peers(&[
            "nats://u:p@10.0.0.1:7000/",
            "dns://u:p@localhost:7001/?min=1",
        ]);
        let (routes, enough) = peers.resolve_all();
        assert!(enough);
        assert!(
            routes.contains(&"nats://u:p@10.0.0.1:7000".to_string()),
            "{routes:?}"
        );
        assert!(
            routes.contains(&"nats://u:p@127.0.0.1:7001".to_string()),
            "{routes:?}"
        );
    }

    #[test]
    fn asks_on_until_stopped_and_tells_only_what_is_new() {
        let peers = peers(&["dns://localhost:7001/?min=99&interval_ms=10"]);
        assert!(!peers.resolve_all().1);
        let (told, news) = bounded(10);
        let going = peers.keep_asking(Vec::new(), move |routes| drop(told.send(routes.to_vec())));
        assert!(
            !news
                .recv_timeout(Duration::from_secs(10))
                .unwrap()
                .is_empty()
        );
        assert!(
            news.recv_timeout(Duration::from_millis(100))
                .is_err_and(|e| e.is_timeout())
        );
        drop(going);
        // The thread drops the closure when it ends.
        assert!(
            news.recv_timeout(Duration::from_secs(10))
                .is_err_and(|e| e.is_disconnected())
        );
    }

    #[test]
    fn a_bad_number_is_an_error() {
        let error = ServerPeers::parse(&["dns://h:1/?min=x".to_string()])
            .err()
            .unwrap();
        assert!(error.contains("min"), "{error}");
    }
}
