//! Operations: what an operator sees of a running daemon, and how it is locked in.
//!
//! ```text
//!   node::Statistics ─┬─▶ /metrics        Prometheus
//!   plane::Events   ──┼─▶ / /status.json  the status page
//!   Store           ──┼─▶ audit log       at most ten lines a second
//!                     └─▶ service manager READY, WATCHDOG, STATUS
//! ```
//!
//! Everything here only reads.

mod audit;
mod confine;
mod metrics;
mod server;
mod service;
mod status;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::TryRecvError;

use crate::node::Statistics;
use crate::plane::{self, Plane};
use crate::store::{Store, StoreStatistics};

use self::audit::Audit;
use self::server::StatusServer;
use self::status::Latest;

pub use self::confine::{ConfineError, Confinement};
pub use self::metrics::metrics;
pub use self::service::ServiceManager;

/// What there is to be seen.
#[derive(Clone)]
pub struct Sources {
    /// How the nodes stand.
    pub statistics: Arc<dyn Fn() -> Statistics + Send + Sync>,
    /// Whose events are shown.
    pub plane: Arc<Plane>,
    /// The store, if there is one.
    pub store: Option<Store>,
}

impl Sources {
    fn store_statistics(&self) -> Option<StoreStatistics> {
        self.store.as_ref().map(Store::statistics)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// Shows until it is dropped.
#[derive(Debug)]
pub struct Operations {
    server: Option<StatusServer>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How often events are looked for.
const TICK: Duration = Duration::from_millis(100);

/// How often counters are looked at.
const SECOND: Duration = Duration::from_secs(1);

impl Operations {
    /// Serves metrics and status page at `address`, if there is one, writes the audit log, and
    /// keeps the service manager informed.
    pub fn start(address: Option<SocketAddr>, sources: Sources) -> io::Result<Self> {
        let latest = Arc::new(Latest::default());
        let server = address
            .map(|address| StatusServer::start(address, sources.clone(), Arc::clone(&latest)))
            .transpose()?;
        let ended = Arc::new(AtomicBool::new(false));
        let events = sources.plane.events().subscribe();
        let watcher = Watcher {
            sources,
            latest,
            events,
            audit: Audit::default(),
            manager: ServiceManager,
        };
        let flag = Arc::clone(&ended);
        let thread = thread::Builder::new()
            .name("operations".to_owned())
            .spawn(move || watcher.run(&flag))?;
        Ok(Self {
            server,
            ended,
            thread: Some(thread),
        })
    }

    /// Where metrics and status page are served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(StatusServer::address)
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Watcher {
    sources: Sources,
    latest: Arc<Latest>,
    events: tokio::sync::broadcast::Receiver<Arc<plane::Event>>,
    audit: Audit,
    manager: ServiceManager,
}

impl Watcher {
    fn run(mut self, ended: &AtomicBool) {
        let mut counted = Instant::now();
        let mut said_alive = Instant::now();
        while !ended.load(Ordering::Relaxed) {
            self.take_events();
            let now = Instant::now();
            if now.duration_since(counted) >= SECOND {
                counted = now;
                let statistics = (self.sources.statistics)();
                self.audit.drops(now, &statistics);
                self.manager.status(&summary(&statistics));
            }
            // Said only after the counters of all nodes could be read.
            if let Some(interval) = self.manager.interval()
                && now.duration_since(said_alive) >= interval
            {
                said_alive = now;
                self.manager.alive();
            }
            thread::park_timeout(TICK);
        }
    }

    fn take_events(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    self.latest.push(&event);
                    if is_auditable(event.kind) {
                        let now = Instant::now();
                        self.audit.event(now, event.kind, &event.host, &event.text);
                    }
                }
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }
}

/// What RFC 4303 wants audited, and what ends an association.
fn is_auditable(kind: &str) -> bool {
    matches!(
        kind,
        "bad-spi"
            | "packet-refused"
            | "sequence-overflow"
            | "authentication-failures"
            | "hard-expire"
            | "sa-lost"
    )
}

/// One line about everything.
fn summary(statistics: &Statistics) -> String {
    let machines = statistics.nodes.iter().flat_map(|node| &node.machines);
    let (mut count, mut sas) = (0, 0);
    for machine in machines {
        count += 1;
        sas += machine.sas.associations;
    }
    let esp = statistics.nodes.iter().map(|node| &node.esp);
    let (sealed, opened, dropped) = esp.fold((0, 0, 0), |(sealed, opened, dropped), esp| {
        (
            sealed + esp.sealed_packets,
            opened + esp.opened_packets,
            dropped + esp.dropped(),
        )
    });
    format!(
        "{count} machines, {sas} SAs; {sealed} packets sealed, {opened} opened, {dropped} refused"
    )
}
