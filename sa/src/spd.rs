//! The security policy database of one virtual machine (RFC 4301 section 4.4.1).

use core::net::IpAddr;

use crate::ident::Direction;
use crate::interval::IntervalIndex;
use crate::selector::{AddressRange, Flow, Selector};

/// What happens to the packets that a selector matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Inbound policies see packets after their protection was removed.
    pub direction: Direction,
    /// The packets.
    pub selector: Selector,
    /// What happens to them.
    pub action: Action,
}

/// The three choices of RFC 4301 section 4.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Outbound: send with ESP. Inbound: accept only what came with ESP.
    Protect(Protection),
    /// Let pass as it is.
    Bypass,
    /// Drop.
    Discard,
}

/// Which association protects a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protection {
    /// The `reqid` of the association.
    pub reqid: u32,
    /// Where the tunnel ends; `None` is transport mode.
    pub tunnel: Option<IpAddr>,
}

impl Protection {
    /// The outer destination address of a packet of `flow`.
    pub fn destination(&self, flow: &Flow) -> IpAddr {
        self.tunnel.unwrap_or(flow.destination)
    }
}

/// The ordered policies of one virtual machine. They are fixed; a change is a new database.
#[derive(Clone, Debug)]
pub struct Spd {
    outbound: Rules,
    inbound: Rules,
    otherwise: Action,
}

/// The policies of one direction.
#[derive(Clone, Debug)]
struct Rules {
    policies: Vec<Policy>,
    index: IntervalIndex,
    /// The index is by destination, not by source.
    by_destination: bool,
    /// None of them looks at ports.
    ignores_ports: bool,
}

impl Spd {
    /// Policies of which the first that matches decides. What none matches is discarded, as a
    /// machine that requires protection needs it.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4301#section-5
    //# If no policy is found in the SPD that matches a packet (for either
    //# inbound or outbound traffic), the packet MUST be discarded.
    pub fn new(policies: Vec<Policy>) -> Self {
        Self::with_default(policies, Action::Discard)
    }

    /// Policies of which the first that matches decides, and the action for the rest: in
    /// effect a last policy that matches everything.
    pub fn with_default(policies: Vec<Policy>, otherwise: Action) -> Self {
        let (outbound, inbound) = policies
            .into_iter()
            .partition(|policy| policy.direction == Direction::Outbound);
        Self {
            outbound: Rules::new(outbound),
            inbound: Rules::new(inbound),
            otherwise,
        }
    }

    /// What is to happen to a packet.
    pub fn lookup(&self, direction: Direction, flow: &Flow) -> Action {
        self.policy(direction, flow)
            .map_or(self.otherwise, |policy| policy.action)
    }

    /// The first policy that matches a packet.
    pub fn policy(&self, direction: Direction, flow: &Flow) -> Option<&Policy> {
        match direction {
            Direction::Outbound => self.outbound.first_match(flow),
            Direction::Inbound => self.inbound.first_match(flow),
        }
    }

    /// Whether packets that differ in their ports alone (not in ICMP's type or code) always meet the
    /// same policy.
    pub fn ignores_ports(&self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => self.outbound.ignores_ports,
            Direction::Inbound => self.inbound.ignores_ports,
        }
    }

    /// The policies of one direction in their order.
    pub fn policies(&self, direction: Direction) -> &[Policy] {
        match direction {
            Direction::Outbound => &self.outbound.policies,
            Direction::Inbound => &self.inbound.policies,
        }
    }

    /// What happens to packets that no policy matches.
    pub fn otherwise(&self) -> Action {
        self.otherwise
    }
}

impl Default for Spd {
    /// Discards everything.
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Rules {
    /// Indexes the policies by the address that tells more of them apart.
    fn new(policies: Vec<Policy>) -> Self {
        let index = |range: fn(&Selector) -> Option<AddressRange>| {
            let ranges: Vec<_> = policies
                .iter()
                .map(|policy| range(&policy.selector))
                .collect();
            IntervalIndex::new(&ranges)
        };
        let by_source = index(|selector| selector.source);
        let by_destination = index(|selector| selector.destination);
        let prefers_destination = by_destination.broad() <= by_source.broad();
        let ignores_ports = policies.iter().all(|Policy { selector, .. }| {
            selector.source_port.is_none() && selector.destination_port.is_none()
        });
        Self {
            ignores_ports,
            policies,
            index: if prefers_destination {
                by_destination
            } else {
                by_source
            },
            by_destination: prefers_destination,
        }
    }

    fn first_match(&self, flow: &Flow) -> Option<&Policy> {
        let address = if self.by_destination {
            flow.destination
        } else {
            flow.source
        };
        let policy = |&number: &u32| self.policies.get(number as usize);
        let matches = |policy: &&Policy| policy.selector.matches(flow);
        let (narrow, broad) = self.index.candidates(address);
        let narrow = narrow
            .iter()
            .find(|number| policy(number).as_ref().is_some_and(matches));
        let before = narrow.copied().unwrap_or(u32::MAX);
        let broad = broad
            .iter()
            .take_while(|&&number| number < before)
            .find(|number| policy(number).as_ref().is_some_and(matches));
        broad.or(narrow).and_then(policy)
    }
}
