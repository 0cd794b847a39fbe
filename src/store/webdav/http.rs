//! HTTP requests, with a login if the server asks for one.

use std::io;
use std::time::Duration;

use ureq::http::{Request, Response};
use ureq::tls::TlsConfig;
use ureq::{Agent, AsSendBody, Body, SendBody};

use super::super::{CONNECT, SILENCE};
use super::login::Login;
use crate::address::secret::Secret;
use crate::trust;

/// How long a server may process a complete upload: some scan it for viruses or forward it.
const WORK: Duration = Duration::from_secs(300);
/// How long the cleanup after a failed request may take.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Connection to one server, with the login of one user.
pub(super) struct Http {
    agent: Agent,
    /// `https://host:port`
    server: String,
    login: Option<Login>,
    /// The last request failed.
    broken: bool,
}

impl Http {
    pub(super) fn new(server: String, login: Option<(String, Secret)>) -> Http {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            // The login is for this server only, and a person must look at a folder that has moved.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_per_write(Some(SILENCE))
            // The time limit applies to each piece accepted from one such buffer.
            .output_buffer_size(16 * 1024)
            .tls_config(
                TlsConfig::builder()
                    .root_certs(trust::roots("webdav", &server))
                    .build(),
            )
            .build();
        Http {
            agent: agent.new_agent(),
            server,
            login: login.map(|(user, password)| Login::new(user, password)),
            broken: false,
        }
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Sends a request without a body. If the server asks for a login, sends it again with one.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, String> {
        let answer = self.run(method, path, headers, ())?;
        if answer.status().as_u16() != 401 {
            return Ok(answer);
        }
        let Some(login) = &mut self.login else {
            return Err("the server asks for a login, and none is configured".into());
        };
        if !login.take_up(answer.headers()) {
            return Err("the server asks for a login of a kind that is not known here".into());
        }
        self.run(method, path, headers, ())
    }

    /// Sends a PUT. The caller must send a request without a body first, so that the login is
    /// settled: the body can be sent only once.
    pub(super) fn send(
        &mut self,
        path: &str,
        size: u64,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, String> {
        let size = size.to_string();
        let headers = [
            ("Content-Length", size.as_str()),
            ("Content-Type", "application/octet-stream"),
        ];
        self.run("PUT", path, &headers, body)
    }

    fn run(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(answer) = self.login.as_mut().and_then(|l| l.answer(method, path)) {
            request = request.header("Authorization", answer);
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let silence = match method {
            _ if self.broken => LAST_WORDS,
            "PUT" | "MOVE" => WORK,
            _ => SILENCE,
        };
        let request = self.agent.configure_request(request);
        let request = request
            .timeout_per_read(Some(silence))
            .timeout_connect(Some(CONNECT.min(silence)))
            .build();
        let answer = self.agent.run(request);
        self.broken = answer.is_err();
        answer.map_err(|error| match error {
            ureq::Error::Io(error) => explain(&error),
            ureq::Error::Timeout(ureq::Timeout::Connect) => "no connection in time".into(),
            ureq::Error::Timeout(_) => "the server does not answer".into(),
            other => other.to_string(),
        })
    }
}

/// Text of an error in reading an answer's body, which may hide a time-out.
pub(super) fn explain(error: &io::Error) -> String {
    match error.to_string() {
        text if text.contains("timeout: ") => "the server does not answer".into(),
        text => text,
    }
}

/// Describes an answer that is not a success.
pub(super) fn complaint(answer: &Response<Body>) -> String {
    let status = answer.status();
    let words = status.canonical_reason().unwrap_or_default();
    let hint = match status.as_u16() {
        401 => ": wrong login?",
        301 | 302 | 307 | 308 => ": it redirects to a different address",
        411 => ": a proxy on the way does not pass Content-Length on: set it up to, or go round it",
        413 => {
            ": a proxy before the server, or the server, limits the size of an upload: raise that \
             (nginx: client_max_body_size, Apache: LimitRequestBody) above the size of a snapshot, \
             or choose another snapshot.store"
        }
        _ => "",
    };
    format!("HTTP {} {words}{hint}", status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_the_way_is_named() {
        let answer = |status: u16| {
            let body = Body::builder().data("");
            complaint(&Response::builder().status(status).body(body).unwrap())
        };
        assert!(answer(413).contains("client_max_body_size"));
        assert!(answer(411).contains("Content-Length"));
        assert_eq!(answer(403), "HTTP 403 Forbidden");
    }
}
