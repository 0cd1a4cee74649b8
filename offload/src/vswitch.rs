//! The software switch that machines without a virtual function are behind. It decides; it
//! moves nothing.

use core::time::Duration;
use std::collections::{BTreeMap, HashMap};

use vesper_sa::Timestamp;

use crate::ethernet::{Link, MacAddress, VlanId};
use crate::fate::Loss;
use crate::unit::PortId;

/// Limits of a software switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchLimits {
    /// Addresses that it learns, all ports together.
    pub addresses: usize,
    /// After this time without a frame an address is forgotten.
    pub age: Duration,
    /// Frames that a port may flood in a second.
    pub floods: u32,
}

impl Default for SwitchLimits {
    fn default() -> Self {
        Self {
            addresses: 4096,
            age: Duration::from_secs(300),
            floods: 1000,
        }
    }
}

/// A port of the software switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchPort {
    /// Which VLANs it carries.
    pub vlan: PortVlan,
    /// It talks to the uplink, but not to other isolated ports.
    pub isolated: bool,
    /// The one source address that it may use; `None` is any.
    pub guard: Option<MacAddress>,
}

/// The VLANs of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortVlan {
    /// Frames without a tag, which belong to this VLAN; `None` is the untagged network.
    Access(Option<VlanId>),
    /// Frames with one of these tags; those without belong to `native`.
    Trunk {
        /// The tags; empty is all.
        allowed: Vec<VlanId>,
        /// The VLAN of frames without a tag.
        native: Option<VlanId>,
    },
}

impl PortVlan {
    /// The VLAN of a frame that enters with this tag.
    fn admit(&self, tag: Option<VlanId>) -> Result<Option<VlanId>, Loss> {
        match (self, tag) {
            (Self::Access(vlan), None) => Ok(*vlan),
            (Self::Access(_), Some(_)) => Err(Loss::Vlan),
            (Self::Trunk { native, .. }, None) => Ok(*native),
            (Self::Trunk { allowed, .. }, Some(tag)) => {
                match allowed.is_empty() || allowed.contains(&tag) {
                    true => Ok(Some(tag)),
                    false => Err(Loss::Vlan),
                }
            }
        }
    }

    /// Whether a frame of this VLAN leaves here, and with which tag.
    fn emit(&self, vlan: Option<VlanId>) -> Option<Option<VlanId>> {
        match self {
            Self::Access(own) => (*own == vlan).then_some(None),
            Self::Trunk { native, .. } if *native == vlan => Some(None),
            Self::Trunk { allowed, .. } => vlan
                .filter(|vlan| allowed.is_empty() || allowed.contains(vlan))
                .map(Some),
        }
    }
}

/// Where a frame goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// To one port, with this tag.
    To(PortId, Option<VlanId>),
    /// To all of these.
    Flood(Vec<(PortId, Option<VlanId>)>),
    /// Nowhere.
    Drop(Loss),
}

/// Where a frame may go, before floods are counted.
enum Route {
    To(PortId, Option<VlanId>),
    /// To more than one port.
    Many {
        isolated: bool,
        vlan: Option<VlanId>,
    },
    Drop(Loss),
}

/// The software switch. Port 0 is the uplink.
#[derive(Debug)]
pub struct VirtualSwitch {
    limits: SwitchLimits,
    ports: BTreeMap<PortId, SwitchPort>,
    addresses: HashMap<(Option<VlanId>, MacAddress), Place, foldhash::fast::RandomState>,
    /// Frames that each port has flooded in the second that is running.
    floods: HashMap<PortId, (u64, u32)>,
    latest: Option<Forwarded>,
}

/// Where the latest frame went, if that was one place: the next one with the same header goes
/// there at the same moment, and nothing new is learned of it.
#[derive(Clone, Copy, Debug)]
struct Forwarded {
    from: PortId,
    link: Link,
    tag: Option<VlanId>,
    now: Timestamp,
    to: (PortId, Option<VlanId>),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    port: PortId,
    seen: Timestamp,
    /// Set by the host, not learned.
    fixed: bool,
}

impl VirtualSwitch {
    /// A switch with its uplink, a trunk of all VLANs.
    pub fn new(limits: SwitchLimits) -> Self {
        let uplink = SwitchPort {
            vlan: PortVlan::Trunk {
                allowed: Vec::new(),
                native: None,
            },
            isolated: false,
            guard: None,
        };
        Self {
            limits,
            ports: BTreeMap::from([(PortId::HOST, uplink)]),
            addresses: HashMap::default(),
            floods: HashMap::new(),
            latest: None,
        }
    }

    /// Adds a port, or changes one.
    pub fn set_port(&mut self, id: PortId, port: SwitchPort) {
        self.latest = None;
        self.ports.insert(id, port);
    }

    /// Changes a port, if it exists.
    pub(crate) fn change_port(&mut self, id: PortId, change: impl FnOnce(&mut SwitchPort)) {
        self.latest = None;
        self.ports.get_mut(&id).map(change);
    }

    /// Removes a port and what was learned there.
    pub fn remove_port(&mut self, id: PortId) {
        self.latest = None;
        self.ports.remove(&id);
        self.floods.remove(&id);
        self.addresses.retain(|_, place| place.port != id);
    }

    /// Says where an address is, for good; it is not learned elsewhere.
    pub fn set_address(&mut self, mac: MacAddress, vlan: Option<VlanId>, port: PortId) {
        let place = Place {
            port,
            seen: Timestamp::ZERO,
            fixed: true,
        };
        self.latest = None;
        self.addresses.insert((vlan, mac), place);
    }

    /// Forgets an address.
    pub fn clear_address(&mut self, mac: MacAddress, vlan: Option<VlanId>) {
        self.latest = None;
        self.addresses.remove(&(vlan, mac));
    }

    /// Addresses that it knows.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// Where a frame goes that enters at `from` with this header and tag.
    pub fn forward(
        &mut self,
        from: PortId,
        link: &Link,
        tag: Option<VlanId>,
        now: Timestamp,
    ) -> Forward {
        if let Some(latest) = &self.latest
            && (latest.from, latest.tag, latest.now) == (from, tag, now)
            && latest.link.destination == link.destination
            && latest.link.source == link.source
        {
            let (to, tag) = latest.to;
            return Forward::To(to, tag);
        }
        let route = self.route(from, link, tag, now);
        self.latest = match route {
            Route::To(to, exit) => Some(Forwarded {
                from,
                link: *link,
                tag,
                now,
                to: (to, exit),
            }),
            _ => None,
        };
        match route {
            Route::To(to, tag) => Forward::To(to, tag),
            Route::Drop(loss) => Forward::Drop(loss),
            Route::Many { isolated, vlan } => match self.may_flood(from, now) {
                true => {
                    Forward::Flood(self.exits(from, isolated, vlan, link.destination).collect())
                }
                false => Forward::Drop(Loss::Flood),
            },
        }
    }

    /// Where frames go that enter at `from` with this header and tag, if that is one place.
    pub(crate) fn one_way(
        &mut self,
        from: PortId,
        link: &Link,
        tag: Option<VlanId>,
        now: Timestamp,
    ) -> Option<(PortId, Option<VlanId>)> {
        // It may learn that an address has moved.
        self.latest = None;
        match self.route(from, link, tag, now) {
            Route::To(to, tag) => Some((to, tag)),
            Route::Many { .. } | Route::Drop(_) => None,
        }
    }

    fn route(&mut self, from: PortId, link: &Link, tag: Option<VlanId>, now: Timestamp) -> Route {
        let Some(port) = self.ports.get(&from) else {
            return Route::Drop(Loss::Gone);
        };
        let vlan = match port.vlan.admit(tag) {
            Ok(vlan) => vlan,
            Err(loss) => return Route::Drop(loss),
        };
        if link.source.is_group() || port.guard.is_some_and(|mac| mac != link.source) {
            return Route::Drop(Loss::Spoofed);
        }
        let isolated = port.isolated;
        if !self.learn(from, link.source, vlan, now) {
            return Route::Drop(Loss::Spoofed);
        }
        let known = self
            .addresses
            .get(&(vlan, link.destination))
            .filter(|place| place.fixed || now.since(place.seen) < self.limits.age)
            .filter(|_| !link.destination.is_group());
        if let Some(place) = known {
            let to = place.port;
            return match self.exit(from, isolated, to, vlan) {
                Some(tag) => Route::To(to, tag),
                None => Route::Drop(Loss::NoDestination),
            };
        }
        let mut exits = self.exits(from, isolated, vlan, link.destination);
        match (exits.next(), exits.next()) {
            (None, _) => Route::Drop(Loss::NoDestination),
            (Some((to, tag)), None) => Route::To(to, tag),
            _ => Route::Many { isolated, vlan },
        }
    }

    /// Where a frame goes that is for a group, or for an address that nobody has heard of in its
    /// VLAN. The latter is never behind a guarded port, which has but its own, in whichever VLANs
    /// it carries: mostly one port alone is left, and there is nothing to flood.
    fn exits(
        &self,
        from: PortId,
        isolated: bool,
        vlan: Option<VlanId>,
        destination: MacAddress,
    ) -> impl Iterator<Item = (PortId, Option<VlanId>)> {
        self.ports
            .iter()
            .filter(move |(_, port)| {
                let may_have = |address| destination.is_group() || destination == address;
                port.guard.is_none_or(may_have)
            })
            .filter_map(move |(&to, _)| Some((to, self.exit(from, isolated, to, vlan)?)))
    }

    /// The tag with which a frame leaves at `to`; `None` if it may not.
    fn exit(
        &self,
        from: PortId,
        isolated: bool,
        to: PortId,
        vlan: Option<VlanId>,
    ) -> Option<Option<VlanId>> {
        let port = self.ports.get(&to).filter(|_| to != from)?;
        if isolated && port.isolated {
            return None;
        }
        port.vlan.emit(vlan)
    }

    /// `false` if the address is fixed elsewhere.
    fn learn(
        &mut self,
        port: PortId,
        mac: MacAddress,
        vlan: Option<VlanId>,
        now: Timestamp,
    ) -> bool {
        if let Some(place) = self.addresses.get_mut(&(vlan, mac)) {
            if place.fixed {
                return place.port == port;
            }
            (place.port, place.seen) = (port, now);
            return true;
        }
        if self.addresses.len() >= self.limits.addresses {
            let age = self.limits.age;
            self.addresses
                .retain(|_, place| place.fixed || now.since(place.seen) < age);
        }
        if self.addresses.len() < self.limits.addresses {
            let place = Place {
                port,
                seen: now,
                fixed: false,
            };
            self.addresses.insert((vlan, mac), place);
        }
        true
    }

    fn may_flood(&mut self, port: PortId, now: Timestamp) -> bool {
        let second = now.as_nanos() / 1_000_000_000;
        let (at, count) = self.floods.entry(port).or_default();
        if *at != second {
            (*at, *count) = (second, 0);
        }
        *count += 1;
        *count <= self.limits.floods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn link(source: u8, destination: u8) -> Link {
        Link {
            destination: mac(destination),
            source: mac(source),
            ethertype: 0x0800,
        }
    }

    fn access(vlan: Option<u16>) -> SwitchPort {
        SwitchPort {
            vlan: PortVlan::Access(vlan.and_then(VlanId::new)),
            isolated: false,
            guard: None,
        }
    }

    const NOW: Timestamp = Timestamp::from_secs(1);

    #[test]
    fn a_look_at_one_flow_moves_an_address_for_all() {
        let mut switch = VirtualSwitch::new(SwitchLimits::default());
        for id in [1, 2, 3] {
            switch.set_port(PortId(id), access(None));
        }
        switch.forward(PortId(2), &link(2, 1), None, NOW);
        let to_two = |switch: &mut VirtualSwitch| switch.forward(PortId(1), &link(1, 2), None, NOW);
        assert_eq!(to_two(&mut switch), Forward::To(PortId(2), None));
        let moved = switch.one_way(PortId(3), &link(2, 1), None, NOW);
        assert_eq!(moved, Some((PortId(1), None)));
        assert_eq!(to_two(&mut switch), Forward::To(PortId(3), None));
    }

    #[test]
    fn addresses_are_learned_per_vlan_and_forgotten() {
        let mut switch = VirtualSwitch::new(SwitchLimits::default());
        for (id, vlan) in [(1, None), (2, None), (3, Some(7)), (4, Some(7))] {
            switch.set_port(PortId(id), access(vlan));
        }
        let seven = VlanId::new(7);
        let flood = switch.forward(PortId(1), &link(1, 2), None, NOW);
        assert_eq!(
            flood,
            Forward::Flood(vec![(PortId(0), None), (PortId(2), None)])
        );
        let back = switch.forward(PortId(2), &link(2, 1), None, NOW);
        assert_eq!(back, Forward::To(PortId(1), None));
        // The same addresses on another VLAN are others.
        let flood = switch.forward(PortId(3), &link(2, 1), None, NOW);
        assert_eq!(
            flood,
            Forward::Flood(vec![(PortId(0), seven), (PortId(4), None)])
        );
        let tagged = switch.forward(PortId(0), &link(9, 2), seven, NOW);
        assert_eq!(tagged, Forward::To(PortId(3), None));
        let later = Timestamp::from_secs(302);
        let flood = switch.forward(PortId(1), &link(1, 2), None, later);
        assert!(matches!(flood, Forward::Flood(_)));
    }

    #[test]
    fn spoofing_wrong_tags_and_floods_end_at_the_port() {
        let limits = SwitchLimits {
            floods: 3,
            ..SwitchLimits::default()
        };
        let mut switch = VirtualSwitch::new(limits);
        let guarded = SwitchPort {
            guard: Some(mac(1)),
            ..access(None)
        };
        switch.set_port(PortId(1), guarded);
        switch.set_port(PortId(2), access(None));
        let spoofed = switch.forward(PortId(1), &link(2, 9), None, NOW);
        assert_eq!(spoofed, Forward::Drop(Loss::Spoofed));
        let tagged = switch.forward(PortId(1), &link(1, 9), VlanId::new(5), NOW);
        assert_eq!(tagged, Forward::Drop(Loss::Vlan));
        // An unguarded port can not take over a fixed address either.
        switch.set_address(mac(1), None, PortId(1));
        let taken = switch.forward(PortId(2), &link(1, 9), None, NOW);
        assert_eq!(taken, Forward::Drop(Loss::Spoofed));
        for round in 0..5 {
            let outcome = switch.forward(PortId(1), &link(1, 9), None, NOW);
            assert_eq!(outcome == Forward::Drop(Loss::Flood), round >= 3, "{round}");
        }
    }

    #[test]
    fn what_nobody_has_heard_of_is_not_behind_a_guarded_port() {
        let limits = SwitchLimits {
            floods: 1,
            ..SwitchLimits::default()
        };
        let mut switch = VirtualSwitch::new(limits);
        for id in [1, 2] {
            let guarded = SwitchPort {
                guard: Some(mac(id as u8)),
                ..access(None)
            };
            switch.set_port(PortId(id), guarded);
            switch.set_address(mac(id as u8), None, PortId(id));
        }
        // Only the uplink is left, however many there are.
        for _ in 0..5 {
            let outcome = switch.forward(PortId(1), &link(1, 9), None, NOW);
            assert_eq!(outcome, Forward::To(PortId::HOST, None));
        }
        let inwards = switch.forward(PortId::HOST, &link(8, 9), None, NOW);
        assert_eq!(inwards, Forward::Drop(Loss::NoDestination));
        // What is for everybody goes to everybody, within the limit.
        let everybody = Link {
            destination: MacAddress([0xff; 6]),
            ..link(1, 9)
        };
        let outcome = switch.forward(PortId(1), &everybody, None, NOW);
        let exits = vec![(PortId(0), None), (PortId(2), None)];
        assert_eq!(outcome, Forward::Flood(exits));
        let outcome = switch.forward(PortId(1), &everybody, None, NOW);
        assert_eq!(outcome, Forward::Drop(Loss::Flood));
    }

    #[test]
    fn isolated_ports_see_the_uplink_only() {
        let mut switch = VirtualSwitch::new(SwitchLimits::default());
        for id in [1, 2] {
            let isolated = SwitchPort {
                isolated: true,
                ..access(None)
            };
            switch.set_port(PortId(id), isolated);
            switch.set_address(mac(id as u8), None, PortId(id));
        }
        let direct = switch.forward(PortId(1), &link(1, 2), None, NOW);
        assert_eq!(direct, Forward::Drop(Loss::NoDestination));
        let out = switch.forward(PortId(1), &link(1, 9), None, NOW);
        assert_eq!(out, Forward::To(PortId(0), None));
        let from_uplink = switch.forward(PortId(0), &link(9, 2), None, NOW);
        assert_eq!(from_uplink, Forward::To(PortId(2), None));
    }

    #[test]
    fn a_trunk_carries_its_tags_and_no_others() {
        let mut switch = VirtualSwitch::new(SwitchLimits::default());
        let trunk = SwitchPort {
            vlan: PortVlan::Trunk {
                allowed: vec![VlanId::new(5).unwrap()],
                native: None,
            },
            ..access(None)
        };
        switch.set_port(PortId(1), trunk);
        switch.set_address(mac(1), VlanId::new(5), PortId(1));
        let five = switch.forward(PortId(0), &link(9, 1), VlanId::new(5), NOW);
        assert_eq!(five, Forward::To(PortId(1), VlanId::new(5)));
        let six = switch.forward(PortId(1), &link(1, 9), VlanId::new(6), NOW);
        assert_eq!(six, Forward::Drop(Loss::Vlan));
    }
}
