//! The HTTP server: metrics for Prometheus, health for Kubernetes, a page for people.
//!
//! One thread, because answering costs next to nothing beside building a page, which runs on a thread of its own. The port
//! is open to the network, so every resource a client can hold has a bound: connections, scrapes, header bytes, the time
//! to send a request and the time to take the answer.

mod answer;
mod home;
mod listen;
mod negotiate;
mod scrape;
mod stream;

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use crate::config::Config;
use crate::own::{Own, Rejected};
use crate::probes::{Probes, Status, TICK};
use crate::requests::Recent;

pub(crate) use listen::bind;

const MAX_CONNECTIONS: usize = 256;
const MAX_SCRAPES: usize = 40;
/// To send the head of a request; also how long a connection may idle between two.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// To take a whole answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Prometheus' own requests have ten headers and half a kilobyte.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// What the answers are made of.
pub(crate) struct App {
    version: &'static str,
    kernel: String,
    telemetry_path: String,
    started: Instant,
    own: Own,
    /// `None` until the probes are attached.
    status: RwLock<Option<Arc<[Status]>>>,
    /// Not set until the probes are attached. Apart from them, so that asking for it does not wait for a scrape.
    recent: OnceLock<Arc<Recent>>,
    source: Arc<tokio::sync::Mutex<scrape::Source>>,
    scrapes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl App {
    pub(crate) fn new(config: &Config, kernel: String, started: Instant) -> Result<Self, prometheus::Error> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            telemetry_path: config.web.telemetry_path.as_str().to_owned(),
            started,
            own: Own::new(&config.paths.procfs)?,
            status: RwLock::new(None),
            recent: OnceLock::new(),
            source: Arc::default(),
            scrapes: Arc::new(Semaphore::new(MAX_SCRAPES)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// From now on the agent is ready, and scrapes read these probes.
    pub(crate) async fn install(&self, probes: Probes) {
        self.set_status(probes.status());
        self.recent.get_or_init(|| probes.recent());
        self.source.lock().await.probes = Some(probes);
    }

    /// Lets the probes see to what cannot wait for a scrape, as long as this is polled.
    pub(crate) async fn tick(&self) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let mut source = Arc::clone(&self.source).lock_owned().await;
            let tick = move || source.probes.as_mut().map_or((), Probes::tick);
            // An error means that it panicked, which the log has already.
            _ = tokio::task::spawn_blocking(tick).await;
        }
    }

    /// Takes the probes back, once the scrape under way is done.
    pub(crate) async fn remove(&self) -> Option<Probes> {
        self.source.lock().await.probes.take()
    }

    /// Returns when no connection is open any more.
    pub(crate) async fn drained(&self) {
        // An error means that the semaphore was closed, which nobody does.
        _ = self.connections.acquire_many(MAX_CONNECTIONS as u32).await;
    }

    fn status(&self) -> Option<Arc<[Status]>> {
        self.status.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_status(&self, status: &[Status]) {
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = Some(status.into());
    }
}

/// Accepts connections until `stop` is set, then lets the open ones finish the answer they are at.
pub(crate) async fn run(listener: TcpListener, app: Arc<App>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => admit(stream, &app, &stop),
            // The client gave up while it waited in the queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Most likely out of descriptors. The connection stays in the queue: trying again at once would spin.
                warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn admit(stream: TcpStream, app: &Arc<App>, stop: &watch::Receiver<bool>) {
    let Ok(permit) = Arc::clone(&app.connections).try_acquire_owned() else {
        app.own.reject(Rejected::Connections);
        return;
    };
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = connection(stream, app, stop).await {
            debug!(%error, "a connection ended early");
        }
        drop(permit);
    });
}

async fn connection(stream: TcpStream, app: Arc<App>, mut stop: watch::Receiver<bool>) -> hyper::Result<()> {
    let service = service_fn(move |request| answer::answer(Arc::clone(&app), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream::Patient::new(stream, WRITE_TIMEOUT)), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
