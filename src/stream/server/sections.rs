//! Configuration sections that name other servers, and the quoting of values.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{ServerError, ServerOptions};
use crate::address::server::{Address, encode};

/// The name that the Go implementation used, so that a cluster can be replaced node by node.
const CLUSTER_NAME: &str = "e-harmonylite";
pub(super) const ROUTE_PORT: u16 = 6222;
const LEAF_PORT: u16 = 7422;

/// The cluster section, with `routes` to the other servers. All servers ask for the credentials
/// that a URL of `peers` carries. `no_advertise` is set because clients would otherwise learn the
/// other servers' addresses, which may be loopback addresses to them.
pub(super) fn cluster(
    options: &ServerOptions,
    listen: &str,
    routes: &[String],
) -> Result<String, ServerError> {
    let login = route_login(options)?;
    let mut routes = routes.to_vec();
    if routes.is_empty() {
        // The server refuses to start without a route, and ignores a route to itself.
        let listen = listen
            .replace("0.0.0.0:", "127.0.0.1:")
            .replace("[::]:", "[::1]:");
        routes.push(match &login {
            Some((user, password)) => {
                format!("nats://{}:{}@{listen}", encode(user), encode(password))
            }
            None => format!("nats://{listen}"),
        });
    }
    let routes = routes
        .iter()
        .map(|url| quote(url))
        .collect::<Result<Vec<_>, _>>()?;
    let mut authorization = match &login {
        Some((user, password)) => {
            let (user, password) = (quote(user)?, quote(password)?);
            format!("  authorization {{ user: {user}, password: {password}, timeout: 2 }}\n")
        }
        None => String::new(),
    };
    if let Some(files) = &options.route_tls {
        let absolute = |file: &PathBuf| {
            let file = std::path::absolute(file).map_err(ServerError::io("find", file))?;
            quote(&file.to_string_lossy())
        };
        let [ca, cert, key] = [
            absolute(&files[0])?,
            absolute(&files[1])?,
            absolute(&files[2])?,
        ];
        authorization += &format!(
            "  tls {{ ca_file: {ca}, cert_file: {cert}, key_file: {key}, verify: true }}\n"
        );
    }
    let (listen, routes) = (quote(listen)?, routes.join(", "));
    Ok(format!(
        "cluster {{\n  name: {CLUSTER_NAME:?}\n  listen: {listen}\n  no_advertise: true\n\
         {authorization}  routes: [ {routes} ]\n}}"
    ))
}

/// The login of the servers at each other: the configured one, or that of a peer's URL.
fn route_login(options: &ServerOptions) -> Result<Option<(String, String)>, ServerError> {
    if let Some(login) = &options.route_login {
        return Ok(Some(login.clone()));
    }
    let mut logins = parse(&options.peers)?.into_iter();
    Ok(logins.find_map(|peer| Some((peer.user?, peer.password?))))
}

/// Fails if any server of the network could join at `listen`, unless that is wanted.
pub(super) fn require_closed(options: &ServerOptions, listen: &str) -> Result<(), ServerError> {
    let host = split_host_port(listen).map_err(ServerError::Config)?.0;
    let is_loopback = host.eq_ignore_ascii_case("localhost")
        || host
            .parse()
            .is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
    let is_closed = options.route_tls.is_some() || route_login(options)?.is_some();
    if is_loopback || is_closed || options.is_insecure {
        return Ok(());
    }
    Err(ServerError::Config(format!(
        "-cluster-addr {listen}: any server that reaches it could join the cluster, read \
         everything and write it. Set nats.cluster.password_file, with the same password on all \
         nodes, or TLS; or add -insecure-cluster if nobody else reaches that address"
    )))
}

/// The section with a leaf node's connections to its hubs.
pub(super) fn leaf(hubs: &[String]) -> Result<String, ServerError> {
    let remotes = parse(hubs)?.into_iter().map(|hub| {
        // The server resolves the name itself: a leaf needs only one of the hubs.
        let plain = ["nats", "dns"].contains(&hub.scheme.as_str());
        let scheme = if plain { "nats-leaf" } else { &hub.scheme };
        let url = quote(&hub.to_url(scheme, &hub.host_port(LEAF_PORT)))?;
        let as_hub = if hub.query("hub") == Some("true") {
            ", hub: true"
        } else {
            ""
        };
        Ok(format!("{{ urls: [ {url} ]{as_hub} }}"))
    });
    let remotes = remotes.collect::<Result<Vec<_>, ServerError>>()?.join(", ");
    Ok(format!("leafnodes {{ remotes: [ {remotes} ] }}"))
}

/// A peer's address as a route, with its credentials.
pub(super) fn route(peer: &Address) -> String {
    peer.to_url("nats", &peer.host_port(ROUTE_PORT))
}

fn parse(urls: &[String]) -> Result<Vec<Address>, ServerError> {
    urls.iter()
        .map(|url| url.parse::<Address>())
        .collect::<Result<_, _>>()
        .map_err(ServerError::Config)
}

/// Splits `HOST:PORT`. The host may be in brackets or empty (all IPv4 interfaces), the port may be
/// -1.
pub(super) fn split_host_port(address: &str) -> Result<(String, String), String> {
    let bad = || format!("address {address:?}: not of the form HOST:PORT");
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let number: i32 = port.parse().map_err(|_| bad())?;
    if !(-1..=65535).contains(&number) {
        return Err(bad());
    }
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    Ok((host.to_string(), port.to_string()))
}

/// Quotes a string for the configuration. Control characters are an error.
pub(super) fn quote(text: &str) -> Result<String, ServerError> {
    if text.chars().any(char::is_control) {
        return Err(ServerError::Config(
            "a value contains a control character".into(),
        ));
    }
    Ok(format!(
        "\"{}\"",
        text.replace('\\', "\\\\").replace('"', "\\\"")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        let split = |text| split_host_port(text).ok();
        assert_eq!(
            split("127.0.0.1:-1"),
            Some(("127.0.0.1".into(), "-1".into()))
        );
        assert_eq!(split("[::]:4222"), Some(("::".into(), "4222".into())));
        assert_eq!(split(":4222"), Some(("0.0.0.0".into(), "4222".into())));
        assert_eq!(
            (split("4222"), split("h:x"), split("h:70000")),
            (None, None, None)
        );
    }
}
