//! The address where metrics and status page are read. Nothing can be changed here.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as BlockingListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::Sources;
use super::metrics::{MEDIA_TYPE, metrics};
use super::status::{Latest, Status};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;

/// How long a connection may be idle, and an answer take.
const PATIENCE: Duration = Duration::from_secs(10);

const PAGE: &str = include_str!("page.html");

/// The page needs nothing from elsewhere and may not be given anything from there.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'";

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct StatusServer {
    runtime: Option<Runtime>,
    address: SocketAddr,
}

#[derive(Clone)]
struct Shown {
    sources: Sources,
    latest: Arc<Latest>,
    is_loopback: bool,
}

impl StatusServer {
    pub(super) fn start(
        address: SocketAddr,
        sources: Sources,
        latest: Arc<Latest>,
    ) -> io::Result<Self> {
        let listener = BlockingListener::bind(address).map_err(|error| {
            let text = format!("status page: {address}: {error}; give `status` another address");
            io::Error::new(error.kind(), text)
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("status")
            .enable_all()
            .build()?;
        let router = router(Shown {
            sources,
            latest,
            is_loopback: address.ip().is_loopback(),
        });
        let entered = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        runtime.spawn(serve(listener, router));
        drop(entered);
        Ok(Self {
            runtime: Some(runtime),
            address,
        })
    }

    /// Where it is served.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/status.json", get(status))
        .route("/metrics", get(show_metrics))
        .layer(middleware::from_fn_with_state(shown.clone(), guard))
        .with_state(shown)
}

async fn status(State(shown): State<Shown>) -> Response {
    let store = shown.sources.store_statistics();
    let statistics = (shown.sources.statistics)();
    axum::Json(Status::new(&statistics, &shown.latest, store.as_ref())).into_response()
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    let store = shown.sources.store_statistics();
    let text = metrics(&(shown.sources.statistics)(), store.as_ref());
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response()
}

/// A page of the web must not read what is on the loopback address under a name of its own.
async fn guard(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    if shown.is_loopback && !host.is_some_and(is_local) {
        return (
            StatusCode::FORBIDDEN,
            "ask for this by its address or as localhost\n",
        )
            .into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a `Host` header names a loopback address.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor, for example: that passes.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let router = router.clone();
                async move {
                    let answer = router.oneshot(request.map(axum::body::Body::new));
                    let Ok(response): Result<Response, Infallible> = answer.await;
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever reads slowly keeps one place, and not for long.
            let _ = tokio::time::timeout(6 * PATIENCE, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:9615", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("[::1]", true),
            ("evil.example", false),
            ("localhost.evil.example:80", false),
            ("192.0.2.1", false),
            ("", false),
        ] {
            let value = HeaderValue::from_str(host).unwrap();
            assert_eq!(is_local(&value), expected, "{host}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://"));
        assert!(!PAGE.contains("src=") && !PAGE.contains("<link"));
    }
}
