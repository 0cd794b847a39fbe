//! Detects several streams that take one subject.
//!
//! Every JetStream domain has streams of its own. If nodes use leaf servers with a domain each,
//! each node creates a stream in its own domain. While the servers are linked, all of these streams
//! take the messages of every node, and look like one stream. A message published while a link is
//! down stays in one of them only, for ever. So each message names the domain of its writer's
//! stream, and an acknowledgement counts only if that stream sent it.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::server::DOMAIN;

/// The header with the writer's domain. Absent if the writer has none, or has the one of our own
/// servers.
pub(super) const HEADER: &str = "Harmonylite-Domain";

/// Longest domain name to send, in bytes, and most characters of a peer's domain to show.
const LONGEST: usize = 100;

/// Acknowledgements remembered in order to detect a second one: more than are in flight.
const REMEMBERED: usize = 1024;

/// The domain that an answer of the API or an acknowledgement names.
pub(super) fn named(answer: &Value) -> Option<String> {
    let domain = answer["domain"].as_str().filter(|name| !name.is_empty());
    domain.map(str::to_owned)
}

/// The domain to send in a message: none if it is the default, or if it is too long for a header.
pub(super) fn told(domain: Option<&str>) -> Option<&str> {
    domain.filter(|name| *name != DOMAIN && name.len() <= LONGEST)
}

/// The problem with other nodes' streams, for log and health.
#[derive(Clone, Default)]
pub(super) struct Foreign(Arc<Mutex<Option<String>>>);

impl Foreign {
    /// Records that a different stream is in use, in the domain `theirs`. `ours` is the domain used
    /// here.
    pub(super) fn note(&self, stream: &str, ours: Option<&str>, theirs: Option<&str>) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_some() {
            return;
        }
        let name = |domain: Option<&str>| match domain {
            Some(domain) => {
                let shown: String = domain.chars().take(LONGEST).collect();
                format!("domain {shown:?}")
            }
            None => "no domain".to_owned(),
        };
        let text = format!(
            "the nodes use different streams {stream}: here the one in {}, elsewhere one in {}; \
             rows that are written while their servers are not linked never reach the others. Keep \
             one of them, at the hub: set nats.jetstream_domain to its domain on every node and \
             delete the rest",
            name(ours),
            name(theirs)
        );
        log::error!("{text}");
        *noted = Some(text);
    }

    pub(super) fn get(&self) -> Option<String> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.clone()
    }
}

/// Acknowledged tokens, and how many were acknowledged twice.
pub(super) struct AckedTokens(Vec<u64>, usize);

impl Default for AckedTokens {
    fn default() -> AckedTokens {
        AckedTokens(vec![u64::MAX; REMEMBERED], 0)
    }
}

impl AckedTokens {
    /// Whether this message was acknowledged before. Each message is sent once on a connection.
    pub(super) fn is_second(&mut self, token: u64) -> bool {
        let place = &mut self.0[token as usize % REMEMBERED];
        let is_second = std::mem::replace(place, token) == token;
        self.1 += usize::from(is_second);
        is_second
    }

    /// Whether more were acknowledged twice than a change of leaders explains.
    pub(super) fn has_many(&self) -> bool {
        self.1 > 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_acknowledgement_is_known() {
        let mut seen = AckedTokens::default();
        assert!(!seen.is_second(0) && !seen.is_second(7));
        assert!(seen.is_second(7));
        assert!(!seen.is_second(7 + REMEMBERED as u64));
        assert!(!seen.has_many());
        assert!(
            [1, 1, 2, 2]
                .map(|token| seen.is_second(token))
                .contains(&true)
        );
        assert!(seen.has_many());
    }

    #[test]
    fn the_text_names_both_and_what_to_do() {
        let foreign = Foreign::default();
        assert_eq!(foreign.get(), None);
        foreign.note("c-1", Some("leaf1"), None);
        let text = foreign.get().unwrap();
        for word in ["\"leaf1\"", "no domain", "nats.jetstream_domain"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
