//! JSON web tokens as `nsc` makes them: an operator, an account with JetStream, users.

use std::fmt::Write;

use nkeys::KeyPair;
use serde_json::{Value, json};

pub struct Operator {
    account: KeyPair,
    /// Configuration of nats-server, with the memory resolver.
    pub config: String,
}

impl Operator {
    pub fn new() -> Operator {
        let (operator, account, system) = (
            KeyPair::new_operator(),
            KeyPair::new_account(),
            KeyPair::new_account(),
        );
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1,
            "consumer": -1,
        });
        let mut systems = limits.clone();
        for key in ["mem_storage", "disk_storage"] {
            systems[key] = json!(0);
        }
        let tokens = [
            ("system", &system, systems),
            ("application", &account, limits),
        ]
        .map(|(name, key, limits)| {
            let claims = json!({ "limits": limits, "type": "account", "version": 2 });
            let token = sign(&operator, name, &key.public_key(), claims, None);
            format!("{}: {token}", key.public_key())
        });
        let claims = json!({
            "type": "operator", "version": 2, "system_account": system.public_key(),
        });
        let own = sign(&operator, "operator", &operator.public_key(), claims, None);
        let config = format!(
            "operator: {own}\nresolver: MEMORY\nresolver_preload: {{\n{}\n}}\n",
            tokens.join("\n")
        );
        Operator { account, config }
    }

    /// A `.creds` file of a user, valid until `expires`, in unix seconds.
    pub fn creds(&self, expires: Option<u64>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2 });
        let token = sign(&self.account, "node", &user.public_key(), claims, expires);
        format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        )
    }
}

fn sign(issuer: &KeyPair, name: &str, subject: &str, nats: Value, expires: Option<u64>) -> String {
    let mut claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject, "nats": nats,
    });
    if let Some(at) = expires {
        claims["exp"] = json!(at);
    }
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let text = [head, claims]
        .map(|part| base64_url(part.to_string().as_bytes()))
        .join(".");
    let signature = base64_url(&issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

fn base64_url(bytes: &[u8]) -> String {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = String::new();
    for byte in bytes {
        write!(bits, "{byte:08b}").unwrap();
    }
    while !bits.len().is_multiple_of(6) {
        bits.push('0');
    }
    bits.as_bytes()
        .chunks(6)
        .map(|six| {
            let six = usize::from_str_radix(std::str::from_utf8(six).unwrap(), 2).unwrap();
            char::from(SIGNS[six])
        })
        .collect()
}
