//! Thread: calls `health_check.heartbeat_url` while all is well, for a monitor that cannot reach
//! this node because it is behind NAT: the monitor raises the alarm when the calls stay away.
//!
//! A call that fails is no trouble of this node's and stands in the log alone. Neither log nor
//! error shows more of the URL than its host: such URLs are secrets.

use std::time::Duration;

use crossbeam_channel::Sender;
use ureq::Agent;
use ureq::tls::TlsConfig;

use crate::address::secret::Secret;
use crate::logging::Lasting;
use crate::thread::{Exited, spawn};
use crate::trust;

/// A call takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// While something is wrong, here or with the monitor, it is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is called, and how often at most.
pub struct Options {
    pub url: Secret,
    pub interval: Duration,
}

/// Calls until the process ends, whenever `is_well` and the interval is over.
pub fn start(
    options: Options,
    is_well: impl Fn() -> bool + Send + 'static,
    exits: &Sender<Exited>,
) {
    spawn("heartbeat", exits, move || {
        let mut failure = Lasting::default();
        let mut wait = options.interval.min(LOOK_AGAIN);
        loop {
            std::thread::sleep(wait);
            wait = match is_well() {
                true => options.beat(&mut failure),
                false => options.interval.min(LOOK_AGAIN),
            };
        }
    });
}

impl Options {
    /// Calls once. Returns how long to wait.
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
        self.interval.min(LOOK_AGAIN)
    }

    fn call(&self) -> Result<(), String> {
        let url = self.url.reveal();
        let roots = trust::roots("heartbeat", url);
        // One for each call, so that no connection and no buffer stays meanwhile.
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        // Texts of errors may repeat what was asked for.
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

    fn options(url: &str) -> Options {
        Options {
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
        assert_eq!(waits, [options.interval, LOOK_AGAIN, options.interval]);
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
