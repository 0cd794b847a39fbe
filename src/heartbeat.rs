//! Thread: calls `health_check.heartbeat_url` while all is well, for a monitor that cannot reach
//! this node because it is behind NAT. The monitor raises the alarm when the calls stay away.
//!
//! A failed call is only logged; it is no problem of this node. Logs and errors show only the host
//! of the URL, because such URLs are secrets.

use std::time::Duration;

use crossbeam_channel::Sender;
use ureq::Agent;
use ureq::tls::TlsConfig;

use crate::address::secret::Secret;
use crate::logging::Lasting;
use crate::thread::{Exited, spawn};
use crate::trust;

/// Longest duration of a call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for the next check or call, while this node is not well or a call failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The URL to call, and the pace.
pub struct HeartbeatOptions {
    /// The URL; secret as a whole, because its path identifies this node.
    pub url: Secret,
    /// Time between two calls that succeed.
    pub interval: Duration,
}

/// Starts the thread, which calls at every interval at which `is_well`, until the process ends.
pub fn start(
    options: HeartbeatOptions,
    is_well: impl Fn() -> bool + Send + 'static,
    exits: &Sender<Exited>,
) {
    spawn("heartbeat", exits, move || {
        let mut failure = Lasting::default();
        let mut wait = options.interval.min(RETRY_PAUSE);
        loop {
            std::thread::sleep(wait);
            wait = match is_well() {
                true => options.beat(&mut failure),
                false => options.interval.min(RETRY_PAUSE),
            };
        }
    });
}

impl HeartbeatOptions {
    /// Calls once. Returns the time to wait.
    fn beat(&self, failure: &mut Lasting) -> Duration {
        let Err(why) = self.call() else {
            if failure.ends() {
                log::info!("heartbeat: {} answers again", self.host());
            }
            return self.interval;
        };
        if failure.is_news(&why) {
            log::warn!("heartbeat: {}: {why}; trying again", self.host());
        }
        self.interval.min(RETRY_PAUSE)
    }

    fn call(&self) -> Result<(), String> {
        let url = self.url.reveal();
        let roots = trust::roots("heartbeat", url);
        // A new agent for each call, so that no connection and no buffer stays in between.
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        // Messages of errors may repeat the URL.
        let told = |e: ureq::Error| match e {
            ureq::Error::BadUri(_) => "the URL cannot be used".to_owned(),
            e => e.to_string().replace(url, "the URL"),
        };
        let answer = agent.get(url).call().map_err(told)?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(format!("it answers {status}")),
        }
    }

    fn host(&self) -> &str {
        let url = self.url.reveal();
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.rsplit('@').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn options(url: &str) -> HeartbeatOptions {
        HeartbeatOptions {
            url: Secret::new(url),
            interval: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_call_that_fails_is_made_again_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = ["200 OK", "500 Oh", "204 No Content"];
        let server = std::thread::spawn(move || {
            answers.map(|status| {
                let (mut client, _) = listener.accept().unwrap();
                let mut head = [0; 4096];
                let read = client.read(&mut head).unwrap();
                let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                client.write_all(text.as_bytes()).unwrap();
                String::from_utf8_lossy(&head[..read]).into_owned()
            })
        });
        let options = options(&format!("http://{address}/ping/secret-token"));
        let mut failure = Lasting::default();
        let waits = answers.map(|_| options.beat(&mut failure));
        assert_eq!(waits, [options.interval, RETRY_PAUSE, options.interval]);
        for request in server.join().unwrap() {
            assert!(request.starts_with("GET /ping/secret-token "), "{request}");
        }
    }

    #[test]
    fn nothing_secret_of_the_url_is_told() {
        for (url, host) in [
            (
                "https://user:hidden@hc.example:8443/hidden?hidden",
                "hc.example:8443",
            ),
            ("http://127.0.0.1:1/hidden", "127.0.0.1:1"),
        ] {
            assert_eq!(options(url).host(), host);
        }
        for url in [
            "http://127.0.0.1:1/hidden",
            "http://[hidden",
            "http:///hidden",
        ] {
            let why = options(url).call().unwrap_err();
            assert!(!why.contains("hidden"), "{why}");
        }
    }
}
