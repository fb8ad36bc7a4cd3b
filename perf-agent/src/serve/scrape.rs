//! Building pages: one at a time, and as few as the scrapes that wait for them allow.

use std::io::Write as _;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use crate::own::Rejected;
use crate::page::{Format, Page};
use crate::probes::Probes;

/// A scraper that waited this long has given up. Only a host in deep trouble gets here.
const BUILD_TIMEOUT: Duration = Duration::from_secs(30);

/// How a client wants its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) format: Format,
    pub(super) gzip: bool,
}

/// Where pages come from. Whoever builds one holds the lock around this, so that no two read the kernel's maps at once.
#[derive(Default)]
pub(crate) struct Source {
    pub(super) probes: Option<Probes>,
    /// The last page, as long as some client still takes it.
    last: Option<Last>,
}

struct Last {
    shape: Shape,
    begun: Instant,
    page: Weak<Vec<u8>>,
}

#[derive(Debug)]
pub(super) enum ScrapeError {
    Rejected(Rejected),
    Failed(anyhow::Error),
}

/// The page in this shape, as it was at some moment after the call.
pub(super) async fn page(app: &Arc<App>, shape: Shape, in_flight: InFlight) -> Result<Bytes, ScrapeError> {
    let arrived = Instant::now();
    let Ok(permit) = Arc::clone(&app.scrapes).try_acquire_owned() else {
        return Err(ScrapeError::Rejected(Rejected::Scrapes));
    };
    let Ok(built) = tokio::time::timeout(BUILD_TIMEOUT, fresh(app, shape, arrived)).await else {
        return Err(ScrapeError::Rejected(Rejected::Timeout));
    };
    let page = built.map_err(ScrapeError::Failed)?;
    Ok(Bytes::from_owner(Held { page, _permit: permit, _in_flight: in_flight }))
}

/// A page whose building began after `arrived`: one that another client waited for, or a new one.
async fn fresh(app: &Arc<App>, shape: Shape, arrived: Instant) -> anyhow::Result<Arc<Vec<u8>>> {
    let mut source = Arc::clone(&app.source).lock_owned().await;
    if let Some(page) = source.shared(shape, arrived) {
        return Ok(page);
    }
    let app = Arc::clone(app);
    // The lock goes along: if this client goes away, the page is still built and the next one still waits its turn.
    tokio::task::spawn_blocking(move || source.build(&app, shape)).await.context("the page was not built")?
}

impl Source {
    fn shared(&self, shape: Shape, arrived: Instant) -> Option<Arc<Vec<u8>>> {
        let last = self.last.as_ref().filter(|last| last.shape == shape && last.begun >= arrived)?;
        last.page.upgrade()
    }

    fn build(&mut self, app: &App, shape: Shape) -> anyhow::Result<Arc<Vec<u8>>> {
        let begun = Instant::now();
        let mut page = Page::new(shape.format);
        if let Some(probes) = &mut self.probes {
            probes.collect(&mut page);
            app.set_status(probes.status());
        }
        app.own.collect(&mut page, &app.status().unwrap_or_default(), begun.elapsed());
        let mut page = page.finish();
        if shape.gzip {
            page = compress(&page)?;
        }
        page.shrink_to_fit();
        let page = Arc::new(page);
        self.last = Some(Last { shape, begun, page: Arc::downgrade(&page) });
        Ok(page)
    }
}

/// The lowest level: a page shrinks tenfold by it, and by half as much again for several times the CPU time.
fn compress(page: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(page.len() / 8), Compression::fast());
    encoder.write_all(page).context("the page cannot be compressed")?;
    encoder.finish().context("the page cannot be compressed")
}

/// A page with the right to take it: the scrape is in flight until its last byte is with the kernel.
struct Held {
    page: Arc<Vec<u8>>,
    _permit: OwnedSemaphorePermit,
    _in_flight: InFlight,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.page
    }
}

/// Counts a request as in flight as long as it lives.
pub(super) struct InFlight(IntGauge);

impl InFlight {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
