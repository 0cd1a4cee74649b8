//! What the status page shows, as JSON.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::Serialize;

use crate::control::api::stats_of;
use crate::control::types::Stats;
use crate::node::Statistics;
use crate::plane::Event;
use crate::store::StoreStatistics;

/// Events that the page shows.
const EVENTS: usize = 50;

/// How everything stands.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    stats: Stats,
    events: Vec<ShownEvent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreStatus>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
struct ShownEvent {
    /// Seconds since 1970.
    time: u64,
    kind: &'static str,
    host: String,
    text: String,
}

/// What durability costs.
#[derive(Clone, Copy, Debug, Serialize)]
struct StoreStatus {
    commits: u64,
    failures: u64,
    mean_micros: u64,
    longest_micros: u64,
}

/// The latest events.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<VecDeque<ShownEvent>>);

impl Latest {
    pub(super) fn push(&self, event: &Event) {
        let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.push_front(ShownEvent {
            time: time.as_secs(),
            kind: event.kind,
            host: event.host.to_string(),
            text: event.text.clone(),
        });
        events.truncate(EVENTS);
    }
}

impl Status {
    pub(super) fn new(
        statistics: &Statistics,
        latest: &Latest,
        store: Option<&StoreStatistics>,
    ) -> Self {
        let events = latest.0.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = |duration: std::time::Duration| duration.as_micros() as u64;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            stats: stats_of(statistics),
            events: events.iter().cloned().collect(),
            store: store.map(|store| StoreStatus {
                commits: store.commits,
                failures: store.failures,
                mean_micros: micros(store.busy).checked_div(store.commits).unwrap_or(0),
                longest_micros: micros(store.longest),
            }),
        }
    }
}
