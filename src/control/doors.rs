//! The doors that the configuration opens, and the routes of each.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{Context, health, not_found};
use crate::address::configured::ListenAddress;
use crate::config::Config;
use crate::http::{self, Door, Handler, Listener, Request, Response, SocketFile};
use crate::lock;
use crate::poller::Poller;
use crate::thread::Exited;

/// Bound addresses that are not served yet. Dropping it removes the Unix socket's file.
pub struct Doors {
    doors: Vec<(Listener, Serves)>,
    file: Option<SocketFile>,
}

/// The routes of a door.
#[derive(Clone)]
struct Serves {
    /// Whether it has all routes.
    all: bool,
    /// The path of `[health_check]`, and whether its answers have a body.
    check: Option<(String, bool)>,
}

impl Doors {
    /// Binds the configured addresses. The caller holds the database's lock, so that no other
    /// daemon listens at its socket. Fails if an address that the configuration names cannot be
    /// bound.
    pub fn open(config: &Config) -> Result<Doors, String> {
        let (prometheus, check) = (&config.prometheus, &config.health_check);
        let mut doors = Vec::new();
        let health = Serves {
            all: check.detailed,
            check: Some((check.path.clone(), check.detailed)),
        };
        let is_one = prometheus.enable && check.enable && prometheus.bind == check.bind;
        if prometheus.enable {
            let check = health.check.clone().filter(|_| is_one);
            let listener = bind(config, "prometheus.bind", &prometheus.bind)?;
            doors.push((listener, Serves { all: true, check }));
        }
        if check.enable && !is_one {
            doors.push((bind(config, "health_check.bind", &check.bind)?, health));
        }
        let file = match &config.control_socket {
            Some(path) => bind_socket(config, path, &mut doors)?,
            None => None,
        };
        Ok(Doors { doors, file })
    }

    /// Answers until the process ends. Dropping the returned value removes the socket's file.
    pub fn serve(
        self,
        context: &Arc<Context>,
        poller: &Poller,
        exits: &Sender<Exited>,
    ) -> Option<SocketFile> {
        let doors = self.doors.into_iter().map(|(listener, serves)| {
            if let Some(address) = listener.address() {
                log::info!("health at http://{address}{}", serves.health_path());
            }
            Door::new(listener, serves.handler(context.clone()))
        });
        http::serve(doors.collect(), poller, exits);
        self.file
    }
}

fn bind(config: &Config, key: &str, bind: &ListenAddress) -> Result<Listener, String> {
    http::listen_tcp(bind, &config.http_hosts).map_err(|e| format!("{key}: listen on {bind}: {e}"))
}

/// Binds the Unix socket. A failure at the default path is only a warning, because some file
/// systems have no sockets.
fn bind_socket(
    config: &Config,
    path: &Path,
    doors: &mut Vec<(Listener, Serves)>,
) -> Result<Option<SocketFile>, String> {
    match http::listen_unix(path) {
        Ok((listener, file)) => {
            let (all, check) = (true, None);
            doors.push((listener, Serves { all, check }));
            Ok(Some(file))
        }
        Err(e) => {
            let text = format!("control_socket: listen on {}: {e}", path.display());
            if path != lock::socket_of_database(&config.db_path) {
                return Err(text);
            }
            log::warn!(
                "{text}; commands cannot ask this daemon (control_socket = \"\" turns this \
                 warning off)"
            );
            Ok(None)
        }
    }
}

impl Serves {
    fn health_path(&self) -> &str {
        self.check.as_ref().map_or("/health", |(path, _)| path)
    }

    fn handler(self, context: Arc<Context>) -> Handler {
        Arc::new(move |request: &Request| self.answer(&context, request))
    }

    fn answer(&self, context: &Context, request: &Request) -> Response {
        match &self.check {
            Some((path, detailed)) if *path == request.path => {
                told(health::health(context), *detailed)
            }
            Some((_, detailed)) if !self.all && request.path == "/ready" => {
                told(health::ready(context), *detailed)
            }
            Some((path, _)) if !self.all => not_found([path.as_str(), "/ready"].into_iter()),
            _ => context.answer(request),
        }
    }
}

/// The response as this door gives it: without a body unless `detailed`.
fn told(mut response: Response, detailed: bool) -> Response {
    if !detailed {
        response.body = Vec::new();
    }
    response
}
