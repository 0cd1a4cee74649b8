//! What to do about IPsec for the frames of a batch: by policy, or by the handle that came with
//! them.

use vesper_esp::Buffer;
use vesper_esp::wire::flow;
use vesper_sa::{Action, Direction, Mode, Spd, VmId};

use super::Config;
use crate::capability::OffloadMode;
use crate::ethernet::{Link, ethertype};
use crate::fate::Loss;
use crate::flow_key::FlowKey;
use crate::transfer::SendIpsec;
use crate::unit::{OffloadHandle, Offloaded};

/// What policy, or the host, says about one frame.
#[derive(Clone, Copy)]
pub(super) enum Choice<'a> {
    Clear,
    /// The adapter makes ESP of it.
    Packet(&'a Offloaded),
    /// It is ESP, to be encrypted.
    Crypto(&'a Offloaded),
    ToHost,
    Fail(Loss),
}

impl<'a> Choice<'a> {
    fn of(offloaded: &'a Offloaded) -> Self {
        match offloaded.offload.mode {
            OffloadMode::Packet => Self::Packet(offloaded),
            OffloadMode::Crypto => Self::Crypto(offloaded),
        }
    }
}

/// Says what to do about IPsec for the frames of one machine's batch. What it has found for
/// one frame it knows for the next one of the same flow: nothing changes meanwhile.
pub(super) struct Chooser<'a, B> {
    config: &'a Config<B>,
    owner: VmId,
    policies: Option<&'a Spd>,
    flow: Option<(FlowKey, Choice<'a>)>,
    bound: Option<(OffloadHandle, Choice<'a>)>,
}

impl<'a, B: Buffer> Chooser<'a, B> {
    /// For the frames of this machine.
    pub(super) fn new(config: &'a Config<B>, owner: VmId) -> Self {
        Self {
            config,
            owner,
            policies: config.unit.policies(owner),
            flow: None,
            bound: None,
        }
    }

    /// The association of the next packet, if the adapter makes ESP of it in tunnel mode.
    pub(super) fn tunnel(
        &mut self,
        ipsec: SendIpsec,
        link: &Link,
        packet: &[u8],
    ) -> Option<&'a Offloaded> {
        match self.choose(ipsec, link, packet) {
            Choice::Packet(offloaded) if offloaded.sa.mode() == Mode::Tunnel => Some(offloaded),
            _ => None,
        }
    }

    /// What to do for the next packet, which was behind this header.
    #[inline(never)]
    pub(super) fn choose(&mut self, ipsec: SendIpsec, link: &Link, packet: &[u8]) -> Choice<'a> {
        match ipsec {
            SendIpsec::Done => Choice::Clear,
            SendIpsec::Handle(handle) => match self.bound {
                Some((bound, choice)) if bound == handle => choice,
                _ => self.by_handle(handle),
            },
            SendIpsec::Policy => match self.policies {
                Some(policies) => self.by_policy(policies, link, packet),
                None => Choice::Clear,
            },
        }
    }

    /// Whether what is chosen for a packet holds for those that differ in their ports alone.
    pub(super) fn ignores_ports(&self, ipsec: SendIpsec) -> bool {
        match ipsec {
            SendIpsec::Done | SendIpsec::Handle(_) => true,
            SendIpsec::Policy => self
                .policies
                .is_none_or(|policies| policies.ignores_ports(Direction::Outbound)),
        }
    }

    #[inline(never)]
    fn by_handle(&mut self, handle: OffloadHandle) -> Choice<'a> {
        let found = self.config.unit.at_or_draining(handle);
        let choice = found.map_or(Choice::Fail(Loss::ForeignHandle), |offloaded| {
            Choice::of(offloaded)
        });
        self.bound = Some((handle, choice));
        choice
    }

    fn by_policy(&mut self, policies: &Spd, link: &Link, packet: &[u8]) -> Choice<'a> {
        if !link.is_ip() {
            return match link.ethertype {
                ethertype::ARP => Choice::Clear,
                _ => Choice::Fail(Loss::Policy),
            };
        }
        let Some(key) = FlowKey::of(packet) else {
            return self.look_up(policies, packet);
        };
        match self.flow {
            Some((flow, choice)) if flow == key => choice,
            _ => {
                let choice = self.look_up(policies, packet);
                self.flow = Some((key, choice));
                choice
            }
        }
    }

    #[inline(never)]
    fn look_up(&self, policies: &Spd, packet: &[u8]) -> Choice<'a> {
        let Some(flow) = flow(packet) else {
            return Choice::Fail(Loss::Malformed);
        };
        let protection = match policies.lookup(Direction::Outbound, &flow) {
            Action::Bypass => return Choice::Clear,
            Action::Discard => return Choice::Fail(Loss::Policy),
            Action::Protect(protection) => protection,
        };
        let destination = protection.destination(&flow);
        let config = self.config;
        let found = config
            .unit
            .outbound(self.owner, protection.reqid, destination);
        match found {
            Some(offloaded)
                if offloaded.offload.mode == OffloadMode::Packet
                    && config.enabled.carries(offloaded.sa.mode(), packet) =>
            {
                Choice::Packet(offloaded)
            }
            // Not offloaded, or in crypto mode, where the host makes the ESP packet.
            _ => Choice::ToHost,
        }
    }
}
