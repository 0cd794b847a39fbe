//! The running daemon's HTTP interface: [`ROUTES`], on the Unix socket beside the database and, if
//! configured, on TCP.
//!
//! To add a route, add a line to [`ROUTES`] whose `answer` is a function of [`Context`] and
//! [`Request`]. It runs in a thread of its own and may wait. A route that changes anything has
//! [`AllowedClients::Socket`].

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::offline::Offline;
use crate::config::Config;
use crate::http::{Method, Request, Response};
use crate::metrics::Exporter;
use crate::progress;
use crate::shared::Shared;

mod doors;
mod health;
mod metrics;
mod page;
mod pause;
mod status;

pub use doors::Doors;

/// How long a client waits for the database, which an application may have locked.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The daemon's state, from which handlers make their answers.
pub struct Context {
    /// The configuration in use.
    pub config: Config,
    /// When the process started.
    pub started: Instant,
    /// Set when the database is open. It ends before the process does.
    shared: OnceLock<Weak<Shared>>,
    /// Pauses and resumes; not set while the daemon starts.
    offline: OnceLock<Arc<Offline>>,
    /// Made on the first request for metrics.
    exporter: OnceLock<Exporter>,
}

/// The clients that may use a route.
#[derive(PartialEq, Eq)]
enum AllowedClients {
    /// Any client that can connect.
    Anywhere,
    /// This machine's administrator alone, by the Unix socket.
    Socket,
}

/// Makes the answer to a request.
type RouteHandler = fn(&Context, &Request) -> Response;

/// A path and its handler. `HEAD` is allowed wherever `GET` is.
struct Route {
    method: Method,
    /// The path, which must match as a whole.
    path: &'static str,
    /// The clients that may use it.
    reach: AllowedClients,
    answer: RouteHandler,
}

impl Route {
    const fn new(
        method: Method,
        path: &'static str,
        reach: AllowedClients,
        answer: RouteHandler,
    ) -> Route {
        Route {
            method,
            path,
            reach,
            answer,
        }
    }
}

/// All routes. Two may share a path with different methods.
const ROUTES: [Route; 10] = {
    use AllowedClients::{Anywhere, Socket};
    use Method::{Get, Post};
    [
        Route::new(Get, "/", Anywhere, |_, _| page::page()),
        Route::new(Get, "/status", Anywhere, |c, _| status::status(c)),
        Route::new(Get, "/metrics", Anywhere, |c, _| metrics::metrics(c)),
        Route::new(Get, "/health", Anywhere, |c, _| health::health(c)),
        Route::new(Get, "/ready", Anywhere, |c, _| health::ready(c)),
        Route::new(Post, "/forget", Socket, status::forget),
        Route::new(Post, "/verify", Socket, status::begin_verify),
        Route::new(Get, "/verify", Socket, |c, _| status::verify(c)),
        Route::new(Post, "/pause", Socket, |c, _| pause::pause(c, true)),
        Route::new(Post, "/resume", Socket, |c, _| pause::pause(c, false)),
    ]
};

impl Context {
    /// The context while the daemon starts; without the shared state.
    pub fn new(config: Config) -> Arc<Context> {
        Arc::new(Context {
            config,
            started: Instant::now(),
            shared: OnceLock::new(),
            offline: OnceLock::new(),
            exporter: OnceLock::new(),
        })
    }

    /// Stores the shared state, once the database is open.
    pub fn opened(&self, shared: Weak<Shared>) {
        let _ = self.shared.set(shared);
    }

    /// The shared state; none while the daemon starts or stops. Do not keep it: it holds the
    /// database open.
    pub fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.get()?.upgrade()
    }

    /// Stores what pauses and resumes.
    pub fn goes_offline(&self, offline: Arc<Offline>) {
        let _ = self.offline.set(offline);
    }

    /// Whether `/health` answers 200 just now.
    pub fn is_healthy(&self) -> bool {
        health::health(self).status == 200
    }

    /// Why there is no shared state: "starting" or "stopping".
    pub fn absence(&self) -> &'static str {
        match self.shared.get() {
            None => "starting",
            Some(_) => "stopping",
        }
    }

    /// 503 while there is no shared state. It has the work that takes long, such as the fetching of
    /// the first snapshot.
    fn absent(&self) -> Response {
        let error = format!("the daemon is {}", self.absence());
        let told = json!({ "error": error, "progress": progress::as_json() });
        Response::json(503, &told)
    }

    /// Answers a request for a path of [`ROUTES`].
    fn answer(&self, request: &Request) -> Response {
        let method = match request.method {
            Method::Head => Method::Get,
            method => method,
        };
        let fits = |route: &&Route| route.path == request.path;
        let is_open = |route: &&Route| request.is_local || route.reach == AllowedClients::Anywhere;
        let mut routes = ROUTES.iter().filter(fits).filter(is_open).peekable();
        if routes.peek().is_none() {
            return not_found(ROUTES.iter().filter(is_open).map(|route| route.path));
        }
        match routes.find(|route| route.method == method) {
            Some(route) => (route.answer)(self, request),
            None => Response::text(405, "not with this method\n"),
        }
    }
}

/// 404, with the paths that the client may use.
fn not_found<'p>(paths: impl Iterator<Item = &'p str>) -> Response {
    let paths: Vec<&str> = paths.collect();
    Response::text(404, format!("there is {} here\n", paths.join(", ")))
}

/// 503, for handlers whose answer needs the database.
pub fn unavailable(why: &str) -> Response {
    Response::json(503, &json!({ "error": why }))
}
