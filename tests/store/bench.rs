//! A server with the settings to reach it, in the form that the checks need.

use std::time::Duration;

use harmonylite::config::snapshot::StoreSettings as Settings;
use harmonylite::store::{Result, Store, StoreError, open, open_existing};
use harmonylite::stream::StreamError;
use harmonylite::stream::client::{Client, ClientOptions};

use crate::data::SECRET;
use crate::servers::process::Process;

/// The way to a server: directly, or by a proxy on a different port.
pub struct Way {
    pub port: u16,
    pub password: String,
    /// The folder or bucket; every check has one of its own.
    pub place: String,
}

pub struct Bench {
    /// The server's name in messages.
    pub name: &'static str,
    /// The beginning of the store's `address`.
    pub kind: &'static str,
    pub port: u16,
    pub settings: Box<dyn Fn(&Way) -> Settings + Send + Sync>,
    /// The server's process, which ends when dropped; None for a folder.
    pub process: Option<Process>,
}

impl Bench {
    pub fn way(&self, place: &str) -> Way {
        Way {
            port: self.port,
            password: SECRET.into(),
            place: place.into(),
        }
    }

    pub fn try_open(&self, way: &Way) -> Result<Box<dyn Store>> {
        let settings = (self.settings)(way);
        open(&settings, "changes", &|| connect(way))
    }

    /// Opens the store as a reader does, which creates nothing.
    pub fn open_existing(&self, place: &str) -> Result<Box<dyn Store>> {
        let way = self.way(place);
        open_existing(&(self.settings)(&way), "changes", &|| connect(&way))
    }

    pub fn open(&self, place: &str) -> Box<dyn Store> {
        let store = self.try_open(&self.way(place));
        let store = store.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert!(
            store.address().starts_with(self.kind),
            "{}",
            store.address()
        );
        store
    }

    /// The error of a call that must fail. Checks that it names the place and hides the secret.
    #[track_caller]
    pub fn error<T>(&self, result: Result<T>) -> String {
        let error = match result {
            Ok(_) => panic!("{}: no error", self.name),
            Err(error @ (StoreError::NotFound { .. } | StoreError::Damaged { .. })) => {
                panic!("{}: {error}", self.name)
            }
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.starts_with(self.kind), "{text}");
        for shown in [&text, &format!("{error:?}")] {
            assert!(!shown.contains(SECRET), "{shown}");
            assert!(!shown.contains("s3cr3t"), "{shown}");
        }
        eprintln!("{}: {text}", self.name);
        text
    }
}

pub const NATS_USER: &str = "tester";

pub fn connect(way: &Way) -> std::result::Result<Client, StreamError> {
    let options = ClientOptions {
        urls: vec![format!("nats://127.0.0.1:{}", way.port)],
        user: Some((NATS_USER.into(), way.password.clone())),
        ..ClientOptions::default()
    };
    Client::connect(&options, Duration::from_secs(5))
}
