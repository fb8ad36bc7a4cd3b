//! From a request to its answer.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use tracing::error;

use super::scrape::{self, InFlight, ScrapeError, Shape};
use super::{App, home, negotiate};
use crate::requests::Filter;

type Answer = Response<Full<Bytes>>;

/// Whatever the request's body is, it is not read.
pub(super) async fn answer<B>(app: Arc<App>, request: Request<B>) -> Result<Answer, Infallible> {
    let in_flight = InFlight::new(&app.own.in_flight);
    // Hyper leaves out the body of an answer to HEAD, and keeps its length.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
        set(&mut refused, ALLOW, "GET, HEAD");
        return Ok(refused);
    }
    Ok(match request.uri().path() {
        // First, because it may be configured to be `/`.
        path if path == app.telemetry_path => metrics(&app, request.headers(), in_flight).await,
        "/" => html(home::page(&app)),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match app.status() {
            Some(_) => text(StatusCode::OK, "ready\n"),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the probes are being attached\n"),
        },
        "/probes" => probes(&app),
        "/requests" => requests(&app, request.uri().query().unwrap_or_default()),
        _ => text(StatusCode::NOT_FOUND, "nothing is served here; / has the links\n"),
    })
}

async fn metrics(app: &Arc<App>, headers: &HeaderMap, in_flight: InFlight) -> Answer {
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let shape =
        Shape { format: negotiate::format(header(ACCEPT)), gzip: negotiate::gzip(header(ACCEPT_ENCODING)) };
    match scrape::page(app, shape, in_flight).await {
        Ok(page) => {
            let mut page = respond(StatusCode::OK, shape.format.content_type(), page);
            set(&mut page, VARY, "Accept, Accept-Encoding");
            if shape.gzip {
                set(&mut page, CONTENT_ENCODING, "gzip");
            }
            page
        }
        Err(ScrapeError::Rejected(reason)) => {
            app.own.reject(reason);
            let mut busy = text(StatusCode::SERVICE_UNAVAILABLE, "too many scrapes are under way\n");
            set(&mut busy, RETRY_AFTER, "1");
            busy
        }
        Err(ScrapeError::Failed(error)) => {
            error!(error = format!("{error:#}"), "a scrape failed");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the page could not be built; the agent's log tells why\n",
            )
        }
    }
}

fn probes(app: &App) -> Answer {
    json(&*app.status().unwrap_or_default())
}

fn requests(app: &App, query: &str) -> Answer {
    let filter = match Filter::parse(query) {
        Ok(filter) => filter,
        Err(error) => {
            return respond(
                StatusCode::BAD_REQUEST,
                "text/plain; charset=utf-8",
                format!("{error}\n").into(),
            );
        }
    };
    match app.recent.get() {
        Some(recent) => json(&recent.answer(&filter)),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the probes are being attached\n"),
    }
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(json) => respond(StatusCode::OK, "application/json", json.into()),
        Err(error) => {
            error!(%error, "an answer cannot be written");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer could not be written; the agent's log tells why\n",
            )
        }
    }
}

fn html(page: String) -> Answer {
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", page.into());
    // The page shows what the kernel and the configuration say; whatever that is, it runs no script.
    set(&mut answer, CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'");
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    set(&mut answer, CONTENT_TYPE, content_type);
    set(&mut answer, CACHE_CONTROL, "no-store");
    set(&mut answer, X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::config::Config;

    fn starting() -> Arc<App> {
        Arc::new(App::new(&Config::default(), "6.1.0".to_owned(), Instant::now()).unwrap())
    }

    async fn get(app: &Arc<App>, path: &str) -> (u16, Bytes) {
        let request = Request::get(path).body(()).unwrap();
        let answer = answer(Arc::clone(app), request).await.unwrap();
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn it_is_alive_before_it_is_ready() {
        let app = starting();
        assert_eq!(get(&app, "/healthz").await.0, 200);
        assert_eq!(get(&app, "/readyz").await.0, 503);
        assert_eq!(get(&app, "/probes").await, (200, Bytes::from_static(b"[]")));
        assert_eq!(get(&app, "/requests").await.0, 503);
        let (status, page) = get(&app, "/metrics").await;
        assert_eq!(status, 200);
        assert!(page.windows(21).any(|at| at == b"perf_agent_build_info"));
        assert!(String::from_utf8_lossy(&get(&app, "/").await.1).contains("being attached"));

        app.set_status(&[]);
        assert_eq!(get(&app, "/readyz").await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scrape_that_hangs_is_given_up_and_holds_nothing_else_up() {
        let app = starting();
        let hung = Arc::clone(&app.source).lock_owned().await;
        let scrape = tokio::spawn({
            let app = Arc::clone(&app);
            async move { get(&app, "/metrics").await.0 }
        });
        tokio::time::sleep(Duration::from_secs(29)).await;
        for path in ["/healthz", "/", "/probes"] {
            assert_eq!(get(&app, path).await.0, 200, "{path}");
        }
        assert!(!scrape.is_finished());
        assert_eq!(scrape.await.unwrap(), 503);
        drop(hung);
        assert_eq!(get(&app, "/metrics").await.0, 200);
    }

    #[tokio::test]
    async fn scrapes_that_wait_together_share_a_page_that_is_fresh() {
        let app = starting();
        let busy = Arc::clone(&app.source).lock_owned().await;
        let scrapes: Vec<_> = (0..20)
            .map(|_| {
                let app = Arc::clone(&app);
                tokio::spawn(async move { get(&app, "/metrics").await.1 })
            })
            .collect();
        while app.own.in_flight.get() < 20 {
            tokio::task::yield_now().await;
        }
        drop(busy);
        let mut pages = Vec::new();
        for scrape in scrapes {
            pages.push(scrape.await.unwrap());
        }
        // All are still held, so equal addresses are the same page.
        let mut different: Vec<_> = pages.iter().map(|page| page.as_ptr()).collect();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 1, "one build for all that came before it");
        let later = get(&app, "/metrics").await.1;
        assert_ne!(later.as_ptr(), pages[0].as_ptr(), "a later scrape gets later numbers");
    }
}
