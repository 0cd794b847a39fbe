//! The two kinds of HTTP login: Basic and Digest.

use digest_auth::{AuthContext, WwwAuthenticateHeader};
use ureq::http::HeaderMap;

use crate::address::secret::Secret;
use crate::model::base64;

enum Scheme {
    Basic,
    Digest(Box<WwwAuthenticateHeader>),
}

pub(super) struct Login {
    user: String,
    password: Secret,
    /// None until the server has asked: the password is never sent unasked.
    scheme: Option<Scheme>,
}

impl Login {
    pub(super) fn new(user: String, password: Secret) -> Login {
        Login {
            user,
            password,
            scheme: None,
        }
    }

    /// Takes up the server's challenge; `false` if no kind in it is known. Digest takes precedence,
    /// since it does not show the password.
    pub(super) fn take_up(&mut self, headers: &HeaderMap) -> bool {
        let questions = headers.get_all("WWW-Authenticate").iter();
        let questions: Vec<&str> = questions.filter_map(|value| value.to_str().ok()).collect();
        let asks = |scheme: &str| {
            questions.iter().find(|question| {
                let word = question.split_whitespace().next().unwrap_or_default();
                word.eq_ignore_ascii_case(scheme)
            })
        };
        let digest = asks("Digest").and_then(|question| digest_auth::parse(question).ok());
        self.scheme = match digest {
            Some(question) => Some(Scheme::Digest(Box::new(question))),
            None => asks("Basic").map(|_| Scheme::Basic),
        };
        self.scheme.is_some()
    }

    /// The value of `Authorization` for a request; None before a challenge.
    pub(super) fn answer(&mut self, method: &str, path: &str) -> Option<String> {
        let (user, password) = (self.user.as_str(), self.password.reveal());
        match self.scheme.as_mut()? {
            Scheme::Basic => {
                let text = base64::encode(format!("{user}:{password}").as_bytes());
                Some(format!("Basic {text}"))
            }
            Scheme::Digest(question) => {
                let body = None::<&[u8]>;
                let context =
                    AuthContext::new_with_method(user, password, path, body, method.into());
                Some(question.respond(&context).ok()?.to_header_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(questions: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for question in questions {
            headers.append("WWW-Authenticate", question.parse().unwrap());
        }
        let mut login = Login::new("me".into(), Secret::new("pw"));
        assert_eq!(login.answer("GET", "/"), None);
        login
            .take_up(&headers)
            .then(|| login.answer("GET", "/").unwrap())
    }

    #[test]
    fn digest_before_basic_before_nothing() {
        let basic = "basic realm=\"a\"";
        assert_eq!(asked(&[basic]).unwrap(), "Basic bWU6cHc=");
        let digest = "Digest realm=\"a\", nonce=\"n\", algorithm=MD5, qop=\"auth\"";
        let answer = asked(&[basic, digest]).unwrap();
        assert!(answer.starts_with("Digest username=\"me\""), "{answer}");
        assert!(!answer.contains("pw"));
        assert_eq!(asked(&["Negotiate"]), None);
        assert_eq!(asked(&[]), None);
    }
}
