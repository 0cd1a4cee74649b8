//! Which Ethernet address each next hop has: asked for when it is needed, confirmed while it is
//! used, forgotten when it no longer answers. A state machine: it is told what happens and
//! when, and says what to send.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use vesper_offload::{MacAddress, VlanId};
use vesper_sa::Timestamp;

/// A next hop: its address on one VLAN.
pub type Hop = (Option<VlanId>, IpAddr);

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// A confirmed address is used for so long without being confirmed again (RFC 4861
    /// `ReachableTime`).
    pub fresh: Duration,
    /// Between two questions for the same address (`RetransTimer`).
    pub retry: Duration,
    /// Questions without an answer until the address is given up.
    pub tries: u8,
    /// An address that was given up is not asked for again for so long.
    pub pause: Duration,
    /// After a change of the Ethernet address further changes are ignored for so long.
    pub lock: Duration,
    /// Next hops that are known or asked for at the same time.
    pub hops: usize,
    /// Questions a second, all together.
    pub questions: u32,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(30),
            retry: Duration::from_secs(1),
            tries: 3,
            pause: Duration::from_secs(3),
            lock: Duration::from_secs(1),
            hops: 1024,
            questions: 100,
        }
    }
}

/// Where a packet for a next hop goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// There.
    Known(MacAddress),
    /// It has to wait for an answer.
    Asked,
    /// Nobody answers, or there are too many next hops.
    Unreachable,
}

/// A question to be sent: for whom, and whom to ask if somebody had the address before.
pub type Question = (Hop, Option<MacAddress>);

/// The known next hops.
#[derive(Debug)]
pub struct Cache {
    limits: CacheLimits,
    entries: HashMap<Hop, Entry>,
    /// Questions that may still be sent in the second that began then.
    second: Timestamp,
    left: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    mac: Option<MacAddress>,
    /// Given by the operator, and never asked for.
    is_fixed: bool,
    /// When the address was confirmed, or given up.
    since: Timestamp,
    /// When it changed.
    changed: Timestamp,
    /// When it was used last.
    used: Timestamp,
    asked: Option<Timestamp>,
    tries: u8,
}

impl Cache {
    /// An empty cache.
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            second: Timestamp::ZERO,
            left: limits.questions,
        }
    }

    /// Sets an address for good.
    pub fn fix(&mut self, hop: Hop, mac: MacAddress) {
        let entry = Entry {
            mac: Some(mac),
            is_fixed: true,
            ..Entry::new(Timestamp::ZERO)
        };
        self.entries.insert(hop, entry);
    }

    /// Says where a packet for `hop` goes, and keeps the address known as long as it is used.
    pub fn resolve(&mut self, hop: Hop, now: Timestamp) -> Resolution {
        if !self.entries.contains_key(&hop) && !self.make_room(now) {
            return Resolution::Unreachable;
        }
        let pause = self.limits.pause;
        let entry = self.entries.entry(hop).or_insert_with(|| Entry::new(now));
        entry.used = now;
        match entry.mac {
            Some(mac) => Resolution::Known(mac),
            None if entry.is_given_up(self.limits.tries) => {
                if now.since(entry.since) < pause {
                    return Resolution::Unreachable;
                }
                *entry = Entry::new(now);
                Resolution::Asked
            }
            None => Resolution::Asked,
        }
    }

    /// Somebody says that a next hop is at an address. It counts only if we want to know it:
    /// nobody can fill the cache. Returns whether packets may wait for it.
    pub fn learn(&mut self, hop: Hop, mac: MacAddress, now: Timestamp) -> bool {
        let lock = self.limits.lock;
        let Some(entry) = self.entries.get_mut(&hop) else {
            return false;
        };
        if entry.is_fixed || mac.is_group() || mac == MacAddress::default() {
            return false;
        }
        if entry.mac.is_some_and(|known| known != mac) {
            if now.since(entry.changed) < lock {
                return false;
            }
            entry.changed = now;
        }
        if entry.mac.is_none() {
            entry.changed = now;
        }
        entry.mac = Some(mac);
        entry.since = now;
        (entry.asked, entry.tries) = (None, 0);
        true
    }

    /// Lets time pass: questions that are due go into `questions`, hops that nobody answers for
    /// are given up and go into `lost`.
    pub fn pass(&mut self, now: Timestamp, questions: &mut Vec<Question>, lost: &mut Vec<Hop>) {
        if now.since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.left = self.limits.questions;
        }
        let CacheLimits {
            fresh,
            retry,
            tries,
            ..
        } = self.limits;
        let left = &mut self.left;
        self.entries.retain(|hop, entry| {
            let is_old = now.since(entry.since) >= fresh;
            let unused = now.since(entry.used) >= fresh * 2;
            if entry.is_fixed {
                return true;
            }
            if unused {
                return false;
            }
            let wanted = match entry.mac {
                None => !entry.is_given_up(tries),
                // Confirmed only as long as it is used.
                Some(_) => is_old && entry.used > entry.since,
            };
            let is_due = entry.asked.is_none_or(|asked| now.since(asked) >= retry);
            if !wanted || !is_due {
                return true;
            }
            if entry.tries >= tries {
                if entry.mac.is_some() {
                    // The one who had it does not answer: everybody is asked.
                    entry.mac = None;
                    entry.tries = 0;
                } else {
                    entry.since = now;
                    entry.tries = u8::MAX;
                    lost.push(*hop);
                    return true;
                }
            }
            if *left > 0 {
                *left -= 1;
                entry.tries += 1;
                entry.asked = Some(now);
                questions.push((*hop, entry.mac));
            }
            true
        });
    }

    /// Whether there is room for one more, if need be that of a hop which is not used.
    fn make_room(&mut self, now: Timestamp) -> bool {
        if self.entries.len() < self.limits.hops {
            return true;
        }
        let fresh = self.limits.fresh;
        self.entries
            .retain(|_, entry| entry.is_fixed || now.since(entry.used) < fresh);
        self.entries.len() < self.limits.hops
    }
}

impl Entry {
    const fn new(now: Timestamp) -> Self {
        Self {
            mac: None,
            is_fixed: false,
            since: now,
            changed: now,
            used: now,
            asked: None,
            tries: 0,
        }
    }

    const fn is_given_up(&self, tries: u8) -> bool {
        self.mac.is_none() && self.tries > tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 3]);

    fn hop(last: u8) -> Hop {
        (None, [192, 0, 2, last].into())
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    fn pass(cache: &mut Cache, millis: u64) -> (Vec<Question>, Vec<Hop>) {
        let (mut questions, mut lost) = Default::default();
        cache.pass(at(millis), &mut questions, &mut lost);
        (questions, lost)
    }

    #[test]
    fn a_hop_is_asked_for_until_it_answers() {
        let mut cache = Cache::new(CacheLimits::default());
        assert_eq!(cache.resolve(hop(2), at(0)), Resolution::Asked);
        assert_eq!(pass(&mut cache, 0).0, [(hop(2), None)]);
        assert_eq!(pass(&mut cache, 999).0, []);
        assert_eq!(pass(&mut cache, 1000).0, [(hop(2), None)]);
        assert!(cache.learn(hop(2), MAC, at(1500)));
        assert_eq!(cache.resolve(hop(2), at(1501)), Resolution::Known(MAC));
        assert_eq!(pass(&mut cache, 3000), (vec![], vec![]));
    }

    #[test]
    fn a_hop_that_never_answers_is_given_up_and_tried_again_later() {
        let mut cache = Cache::new(CacheLimits::default());
        assert_eq!(cache.resolve(hop(2), at(0)), Resolution::Asked);
        for second in 0..3 {
            assert_eq!(pass(&mut cache, second * 1000).0.len(), 1);
        }
        assert_eq!(pass(&mut cache, 3000), (vec![], vec![hop(2)]));
        assert_eq!(cache.resolve(hop(2), at(3001)), Resolution::Unreachable);
        assert_eq!(pass(&mut cache, 5000), (vec![], vec![]));
        assert_eq!(cache.resolve(hop(2), at(6000)), Resolution::Asked);
        assert_eq!(pass(&mut cache, 6000).0.len(), 1);
    }

    #[test]
    fn a_used_hop_is_confirmed_and_an_unused_one_forgotten() {
        let mut cache = Cache::new(CacheLimits::default());
        for last in [2, 3] {
            cache.resolve(hop(last), at(0));
            pass(&mut cache, 0);
            cache.learn(hop(last), MAC, at(1));
        }
        assert_eq!(pass(&mut cache, 29_000).0, []);
        assert_eq!(cache.resolve(hop(2), at(29_500)), Resolution::Known(MAC));
        // The one who had it is asked first, three times; then everybody.
        for second in 31..34 {
            let asked = pass(&mut cache, second * 1000).0;
            assert_eq!(asked, [(hop(2), Some(MAC))]);
            assert_eq!(
                cache.resolve(hop(2), at(second * 1000)),
                Resolution::Known(MAC)
            );
        }
        assert_eq!(pass(&mut cache, 34_000).0, [(hop(2), None)]);
        assert_eq!(cache.resolve(hop(2), at(34_000)), Resolution::Asked);
        pass(&mut cache, 70_000);
        assert!(!cache.learn(hop(3), MAC, at(70_000)), "forgotten");
    }

    #[test]
    fn nobody_can_fill_the_cache_or_change_it_at_will() {
        let limits = CacheLimits {
            hops: 4,
            questions: 3,
            ..CacheLimits::default()
        };
        let mut cache = Cache::new(limits);
        assert!(!cache.learn(hop(9), MAC, at(0)), "nobody asked");
        cache.fix(hop(1), MAC);
        assert!(!cache.learn(hop(1), OTHER, at(0)));
        assert_eq!(cache.resolve(hop(1), at(0)), Resolution::Known(MAC));
        for last in 2..5 {
            assert_eq!(cache.resolve(hop(last), at(0)), Resolution::Asked);
        }
        assert_eq!(cache.resolve(hop(5), at(0)), Resolution::Unreachable);
        assert_eq!(pass(&mut cache, 0).0.len(), 3);
        for last in 2..5 {
            assert!(cache.learn(hop(last), MAC, at(10)));
        }
        assert!(!cache.learn(hop(2), MacAddress::BROADCAST, at(2000)));
        assert!(!cache.learn(hop(2), OTHER, at(500)), "changed just now");
        assert!(cache.learn(hop(2), OTHER, at(2000)));
        assert_eq!(cache.resolve(hop(2), at(2000)), Resolution::Known(OTHER));
        // Room is made of what is not used.
        assert_eq!(cache.resolve(hop(6), at(31_000)), Resolution::Asked);
        // No more than three questions a second.
        for last in 7..9 {
            cache.resolve(hop(last), at(31_000));
        }
        cache.resolve(hop(2), at(31_999));
        assert_eq!(pass(&mut cache, 32_100).0.len(), 3);
        assert!(pass(&mut cache, 32_200).0.is_empty());
    }
}
