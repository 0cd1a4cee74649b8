//! What to do about IPsec for the frames of a batch: by policy, or by the handle that came with
//! them.

use vesper_esp::Buffer;
use vesper_esp::wire::flow;
use vesper_sa::{Action, Direction, Mode, Spd, VmId};

use super::Config;
use crate::capability::OffloadMode;
use crate::ethernet::{Frame, ethertype};
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
    flow: Known<'a, FlowKey>,
    bound: Known<'a, OffloadHandle>,
}

/// What was chosen last.
struct Known<'a, K> {
    /// For which frames; `None`: nothing was chosen.
    key: Option<K>,
    choice: Choice<'a>,
    /// Of [`Choice::Packet`] in tunnel mode the association, apart from the others: what is
    /// nearly always chosen is read as one word.
    tunnel: Option<&'a Offloaded>,
}

impl<'a, K> Known<'a, K> {
    const NOTHING: Self = Self {
        key: None,
        choice: Choice::ToHost,
        tunnel: None,
    };

    fn set(&mut self, key: Option<K>, choice: Choice<'a>) {
        let tunnel = match choice {
            Choice::Packet(offloaded) if offloaded.sa.mode() == Mode::Tunnel => Some(offloaded),
            _ => None,
        };
        *self = Self {
            key,
            choice,
            tunnel,
        };
    }
}

impl<'a, B: Buffer> Chooser<'a, B> {
    /// For the frames of this machine.
    pub(super) fn new(config: &'a Config<B>, owner: VmId) -> Self {
        Self {
            config,
            owner,
            policies: config.unit.policies(owner),
            flow: Known::NOTHING,
            bound: Known::NOTHING,
        }
    }

    /// The association of the next frame, if the adapter makes ESP of it in tunnel mode.
    #[inline(always)]
    pub(super) fn tunnel(&mut self, ipsec: SendIpsec, frame: &Frame<B>) -> Option<&'a Offloaded> {
        let key = match ipsec {
            SendIpsec::Handle(handle) => {
                if self.bound.key != Some(handle) {
                    self.by_handle(handle);
                }
                return self.bound.tunnel;
            }
            SendIpsec::Policy if frame.is_ip() => FlowKey::of(frame.payload.data())?,
            _ => return None,
        };
        if self.flow.key != Some(key) {
            self.choose(ipsec, frame);
        }
        self.flow.tunnel
    }

    /// What to do for the next frame.
    #[inline(never)]
    pub(super) fn choose(&mut self, ipsec: SendIpsec, frame: &Frame<B>) -> Choice<'a> {
        match ipsec {
            SendIpsec::Done => Choice::Clear,
            SendIpsec::Handle(handle) => {
                if self.bound.key != Some(handle) {
                    self.by_handle(handle);
                }
                self.bound.choice
            }
            SendIpsec::Policy => match self.policies {
                Some(policies) => self.by_policy(policies, frame),
                None => Choice::Clear,
            },
        }
    }

    #[inline(never)]
    fn by_handle(&mut self, handle: OffloadHandle) {
        let found = self.config.unit.at_or_draining(handle);
        let choice = found.map_or(Choice::Fail(Loss::ForeignHandle), |offloaded| {
            Choice::of(offloaded)
        });
        self.bound.set(Some(handle), choice);
    }

    fn by_policy(&mut self, policies: &Spd, frame: &Frame<B>) -> Choice<'a> {
        if !frame.is_ip() {
            return match frame.link.ethertype {
                ethertype::ARP => Choice::Clear,
                _ => Choice::Fail(Loss::Policy),
            };
        }
        let packet = frame.payload.data();
        let key = FlowKey::of(packet);
        if key.is_none() || self.flow.key != key {
            let choice = self.look_up(policies, packet);
            self.flow.set(key, choice);
        }
        self.flow.choice
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
