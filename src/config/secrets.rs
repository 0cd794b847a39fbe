//! The secrets of a configuration, for callers that must keep them out of a text.

use super::snapshot::StoreSettings;
use super::{Config, Snapshot};
use crate::address::secret::Secret;
use crate::address::server::decode;
use crate::seal::ClusterKey;

impl Config {
    /// All keys, one a line in the form of `Debug`, with `***` in place of secrets.
    pub fn described(&self) -> String {
        format!("{self:#?}")
    }

    /// Every secret in use, sorted, without empty ones; of a URL, its login and its query's values.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets: Vec<String> = Vec::new();
        let urls = self.nats.urls.iter();
        secrets.extend(urls.flat_map(|url| logins(url.reveal())));
        secrets.extend(shown(&[&self.nats.user_password]));
        let logins = [&self.nats.route_login, &self.nats.leaf_login];
        let logins = logins.into_iter().flatten();
        secrets.extend(logins.map(|login| login.password.reveal().to_owned()));
        // The file is the configuration's; the keys in memory are derived from it.
        let keys = self.cluster_key_file.as_ref();
        let keys = keys.and_then(|file| std::fs::read(file).ok());
        let keys = String::from_utf8_lossy(keys.as_deref().unwrap_or_default());
        let lines = keys.lines();
        let lines = lines.filter(|line| !line.starts_with('#'));
        secrets.extend(lines.map(|line| line.trim().to_owned()));
        secrets.extend(self.seal.keys().iter().map(ClusterKey::route_password));
        secrets.extend(of_snapshots(&self.snapshot));
        let heartbeat = self.health_check.heartbeat_url.as_ref();
        secrets.extend(of_monitor(heartbeat.map_or("", Secret::reveal)));
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_unstable();
        secrets.dedup();
        secrets
    }
}

/// The path of a monitor's URL identifies the caller, so the path counts as a secret.
fn of_monitor(url: &str) -> Vec<String> {
    let path = url.splitn(4, '/').nth(3).filter(|path| !path.is_empty());
    logins(url)
        .into_iter()
        .chain(path.map(str::to_owned))
        .collect()
}

fn of_snapshots(snapshot: &Snapshot) -> Vec<String> {
    snapshot.store.secrets()
}

impl StoreSettings {
    /// Every secret in the section of the store in use; those of a URL also as a server sees them.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = of_store(self);
        let decoded: Vec<String> = secrets.iter().filter_map(|text| decode(text)).collect();
        secrets.extend(decoded);
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len())); // the whole before its parts
        secrets.dedup();
        secrets
    }
}

fn of_store(store: &StoreSettings) -> Vec<String> {
    let url = |url: &Option<Secret>| {
        let url = url.as_ref().map_or("", Secret::reveal);
        logins(url)
    };
    match store {
        StoreSettings::Nats(_) | StoreSettings::File(_) => Vec::new(),
        StoreSettings::S3(s3) => shown(&[&s3.access_key, &s3.secret, &s3.session_token]),
        StoreSettings::WebDav(dav) => [url(&dav.url), shown(&[&dav.password])].concat(),
        StoreSettings::Sftp(sftp) => {
            let secrets = shown(&[&sftp.password, &sftp.passphrase]);
            [url(&sftp.url), secrets].concat()
        }
    }
}

fn shown(secrets: &[&Option<Secret>]) -> Vec<String> {
    let secrets = secrets.iter().filter_map(|secret| secret.as_ref());
    secrets.map(|secret| secret.reveal().to_owned()).collect()
}

/// Keys of a URL's query whose values are not secret.
const HARMLESS: [&str; 2] = ["dir", "login"];

/// The secrets in a URL: the text before `@`, the password or token in that, and the query's
/// values, which may be passwords or tokens too.
fn logins(url: &str) -> Vec<String> {
    let Some((_, rest)) = url.split_once("://") else {
        return Vec::new();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let mut logins = Vec::new();
    if let Some((login, _)) = authority.rsplit_once('@') {
        let secret = login
            .split_once(':')
            .map_or(login, |(_, password)| password);
        logins.extend([login.to_owned(), secret.to_owned()]);
    }
    let values = rest
        .split_once('?')
        .map_or("", |(_, query)| query)
        .split('&');
    let values = values.filter_map(|pair| pair.split_once('='));
    let values = values.filter(|(key, _)| !HARMLESS.contains(key));
    logins.extend(values.map(|(_, value)| value.to_owned()));
    logins.retain(|secret| !secret.is_empty());
    logins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_of_urls() {
        assert_eq!(logins("nats://u:p%40@h:1"), ["u:p%40", "p%40"]);
        assert_eq!(logins("nats://token@h"), ["token", "token"]);
        assert_eq!(logins("https://h/?dir=/d&login=u&secret=abc"), ["abc"]);
        assert!(logins("nats://h:1").is_empty());
    }
}
