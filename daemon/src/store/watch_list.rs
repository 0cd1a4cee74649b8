//! The associations whose supplies are watched, and how they are gone through.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use super::SaName;
use super::refill::RefillSettings;
use super::supply::Supply;

/// Events come late or not at all where much happens at once: every association is looked at
/// this often, as long as there are no more of them than [`PART`] for each [`GLANCE`] ...
const SWEEP: Duration = Duration::from_millis(100);
/// ... so many at a time, as nobody's processor is to be taken for long ...
const PART: usize = 512;
/// ... and those that have few numbers left for the packets that they carry this often ...
const GLANCE: Duration = Duration::from_millis(1);
/// ... or, if they are used up faster, this often.
const SHORTEST_GLANCE: Duration = Duration::from_micros(100);

/// Associations that are looked at between two sweeps at most, and those of them whose rate
/// nobody knows yet.
const MOST_BUSY: [usize; 2] = [4096, 256];

/// Supplies by name, in parts.
pub(super) struct WatchList {
    rows: Vec<(SaName, Supply)>,
    places: HashMap<SaName, usize>,
    /// Where the next part of the sweep begins, and when.
    next: usize,
    due: Instant,
    /// Those that may be low before they are swept again.
    busy: Vec<SaName>,
}

impl WatchList {
    /// An empty one.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rows: Vec::new(),
            places: HashMap::new(),
            next: 0,
            due: now + SWEEP,
            busy: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(SaName, Supply)> {
        self.rows.iter()
    }

    pub(super) fn get_mut(&mut self, name: &SaName) -> Option<&mut Supply> {
        let place = *self.places.get(name)?;
        Some(&mut self.rows[place].1)
    }

    pub(super) fn get(&self, name: &SaName) -> Option<&Supply> {
        let place = *self.places.get(name)?;
        Some(&self.rows[place].1)
    }

    /// Puts one in the place of the one that had its name.
    pub(super) fn insert(&mut self, name: SaName, mut supply: Supply) {
        let place = self.places.get(&name).copied();
        let was_busy = place.is_some_and(|place| self.rows[place].1.is_busy);
        supply.is_busy = was_busy || self.note_busy(name.clone(), supply.rate().is_some());
        match place {
            Some(place) => self.rows[place].1 = supply,
            None => {
                self.places.insert(name.clone(), self.rows.len());
                self.rows.push((name, supply));
            }
        }
    }

    pub(super) fn remove(&mut self, name: &SaName) {
        let Some(place) = self.places.remove(name) else {
            return;
        };
        let (_, supply) = self.rows.swap_remove(place);
        if supply.is_busy {
            self.busy.retain(|busy| busy != name);
        }
        if let Some((moved, _)) = self.rows.get(place) {
            self.places.insert(moved.clone(), place);
        }
    }

    /// All of them; none are left.
    pub(super) fn take(&mut self) -> Vec<(SaName, Supply)> {
        self.places.clear();
        self.busy.clear();
        mem::take(&mut self.rows)
    }

    /// How long nothing has to be looked at.
    pub(super) fn patience(&self, now: Instant) -> Duration {
        let until_sweep = self.due.saturating_duration_since(now);
        let busy = self.busy.iter().filter_map(|name| self.get(name));
        let Some(lasts) = busy.map(Supply::lasts).min() else {
            return until_sweep;
        };
        until_sweep.min(lasts.clamp(SHORTEST_GLANCE, GLANCE))
    }

    /// Finds which associations need more: those of the next part of the sweep, if it is due,
    /// and those that are busy.
    pub(super) fn look(&mut self, now: Instant, settings: &RefillSettings, low: &mut Vec<SaName>) {
        if now >= self.due {
            self.sweep_part(now, settings, low);
        }
        let mut busy = mem::take(&mut self.busy);
        busy.retain(|name| match self.get_mut(name) {
            Some(supply) if supply.is_busy => {
                if supply.is_low() {
                    low.push(name.clone());
                }
                true
            }
            _ => false,
        });
        busy.append(&mut self.busy);
        self.busy = busy;
    }

    fn sweep_part(&mut self, now: Instant, settings: &RefillSettings, low: &mut Vec<SaName>) {
        let parts = self.rows.len().div_ceil(PART).max(1);
        let pause = (SWEEP / parts as u32).max(GLANCE);
        self.due = now + pause;
        if self.next >= self.rows.len() {
            self.next = 0;
        }
        let end = self.rows.len().min(self.next + PART);
        for place in self.next..end {
            let (name, supply) = &mut self.rows[place];
            supply.measure(now);
            if supply.is_due(settings) {
                low.push(name.clone());
            }
            // Until it is swept again, and a little more.
            let is_busy = supply.lasts() <= (pause * parts as u32) * 2;
            match (supply.is_busy, is_busy) {
                (true, false) => supply.is_busy = false,
                (false, true) => {
                    let (name, is_known) = (name.clone(), supply.rate().is_some());
                    self.rows[place].1.is_busy = self.note_busy(name, is_known);
                }
                _ => {}
            }
        }
        self.next = end;
    }

    /// Whether there is room among the busy ones.
    fn note_busy(&mut self, name: SaName, is_known: bool) -> bool {
        let [most, unknown] = MOST_BUSY;
        let is_room = self.busy.len() < if is_known { most } else { unknown };
        if is_room {
            self.busy.push(name);
        }
        is_room
    }
}
