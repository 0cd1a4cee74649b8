//! Where each association is at work, and how it moves between adapter and software without
//! a new key: both use the very same association.

use core::fmt;
use std::sync::Arc;

use vesper_esp::{Buffer, EspContext, EspSa};
use vesper_sa::{AddError, Detached, NotFound, SaHandle, Timestamp, VmId};

use super::{Host, PlacedSa};
use crate::capability::{OffloadMode, WhyNot};
use crate::ethernet::{Frame, VlanId};
use crate::nic::NicEvent;
use crate::unit::{OffloadHandle, Rewrite, SaOffload};

/// How an association should be offloaded, and what its frames look like wherever it is at
/// work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffloadWish {
    /// Modes in the order of preference; none: software.
    pub modes: Vec<OffloadMode>,
    /// The VLAN of its ESP packets.
    pub vlan: Option<VlanId>,
    /// See [`SaOffload::rewrite`].
    pub rewrite: Option<Rewrite>,
    /// See [`SaOffload::inner_checksum`].
    pub inner_checksum: bool,
}

/// Where an association is at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the adapter.
    Offloaded {
        /// Its name there.
        handle: OffloadHandle,
        /// Who does what.
        mode: OffloadMode,
    },
    /// In the host's software.
    Software(SoftwareReason),
}

/// Why an association is not in the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SoftwareReason {
    /// Nobody asked for it.
    NotAsked,
    /// The adapter refused, for all of these reasons.
    Refused(Vec<WhyNot>),
    /// The adapter had it and lost it.
    Lost(WhyNot),
    /// The adapter was reset.
    Reset,
    /// The operator took it back.
    Withdrawn,
    /// It has reached a hard limit, and the adapter asked for its place.
    Ended,
}

impl SoftwareReason {
    /// Whether the association goes back to the adapter by itself when it can.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Lost(_) | Self::Reset)
    }
}

impl fmt::Display for SoftwareReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("offload was not asked for"),
            Self::Refused(reasons) => {
                f.write_str("refused: ")?;
                for (index, reason) in reasons.iter().enumerate() {
                    if index > 0 {
                        f.write_str("; ")?;
                    }
                    reason.fmt(f)?;
                }
                Ok(())
            }
            Self::Lost(why) => write!(f, "lost by the adapter: {why}"),
            Self::Reset => f.write_str("the adapter was reset"),
            Self::Withdrawn => f.write_str("withdrawn by the operator"),
            Self::Ended => f.write_str("a hard limit is reached; replace the association"),
        }
    }
}

/// An association that was set aside, and is to be [put back](Host::put_back) or
/// [ended](Host::end_aside).
#[must_use = "an association that is set aside is neither in use nor ended"]
pub struct SetAside {
    detached: Detached<EspContext>,
    owner: VmId,
    handle: SaHandle,
    wish: OffloadWish,
    /// Why it was not in the adapter, if it was not.
    software: Option<SoftwareReason>,
}

/// Crypto mode with ESN: the adapter is told a new number after this many.
const PUSH_EVERY: u64 = 1 << 24;

impl<B: Buffer> Host<B> {
    /// Adds an association and offloads it if the wish and the adapter allow. It works in
    /// software from the first moment, so that there is no gap.
    pub fn add_sa(&mut self, sa: Arc<EspSa>, wish: OffloadWish) -> Result<SaHandle, AddError> {
        let owner = sa.owner();
        let handle = self.sad.add(sa)?;
        let placed = PlacedSa {
            placement: Placement::Software(SoftwareReason::NotAsked),
            wish,
            pushed: 0,
        };
        self.placements.insert((owner, handle), placed);
        self.offload(owner, handle);
        Ok(handle)
    }

    /// Sets how many associations a machine may have altogether, in the adapter and in
    /// software; [`DEFAULT_SA_LIMIT`](vesper_sa::DEFAULT_SA_LIMIT) unless set.
    pub fn set_sa_limit(&mut self, vm: VmId, limit: u32) {
        self.sad.set_limit(vm, limit);
    }

    /// Where an association is at work.
    pub fn placement(&self, owner: VmId, handle: SaHandle) -> Option<&Placement> {
        self.placements
            .get(&(owner, handle))
            .map(|placed| &placed.placement)
    }

    /// Tries to move an association to the adapter; whether it is there now. The reason why
    /// not is its [`placement`](Self::placement).
    pub fn offload(&mut self, owner: VmId, handle: SaHandle) -> bool {
        let Ok(sa) = self.sad.get(owner, handle).map(Arc::clone) else {
            return false;
        };
        let port = self.nic.vm_usage(owner).map(|usage| usage.port);
        let Some(placed) = self.placements.get_mut(&(owner, handle)) else {
            return false;
        };
        if matches!(placed.placement, Placement::Offloaded { .. }) {
            return true;
        }
        let mut reason = SoftwareReason::NotAsked;
        for mode in &placed.wish.modes {
            let offload = SaOffload {
                mode: *mode,
                port: port.unwrap_or_default(),
                vlan: placed.wish.vlan,
                rewrite: placed.wish.rewrite,
                inner_checksum: placed.wish.inner_checksum,
            };
            match self.nic.add_sa(Arc::clone(&sa), offload) {
                Ok(offloaded) => {
                    placed.placement = Placement::Offloaded {
                        handle: offloaded,
                        mode: *mode,
                    };
                    placed.pushed = sa.sequence();
                    self.offloaded.insert(offloaded, (owner, handle));
                    if *mode == OffloadMode::Crypto && sa.esn() {
                        self.followed.insert((owner, handle));
                    }
                    return true;
                }
                Err(error) => {
                    // The reasons of the mode that was preferred.
                    if reason == SoftwareReason::NotAsked {
                        reason = SoftwareReason::Refused(error.reasons);
                    }
                }
            }
        }
        placed.placement = Placement::Software(reason);
        false
    }

    /// The modes in which an association is to be offloaded from now on, the preferred one first;
    /// one that is in the adapter otherwise moves, and works in software meanwhile.
    pub fn set_modes(&mut self, owner: VmId, handle: SaHandle, modes: Vec<OffloadMode>) {
        let Some(placed) = self.placements.get_mut(&(owner, handle)) else {
            return;
        };
        if placed.wish.modes == modes {
            return;
        }
        placed.wish.modes = modes;
        self.fall_back(owner, handle, SoftwareReason::NotAsked);
        self.offload(owner, handle);
    }

    /// Takes an association back into software. The software has it all the time: the adapter
    /// only lets go.
    pub fn withdraw(&mut self, owner: VmId, handle: SaHandle) {
        self.fall_back(owner, handle, SoftwareReason::Withdrawn);
    }

    /// Tries to move everything to the adapter that is in software for a reason that may have
    /// passed; how many went.
    pub fn restore(&mut self) -> usize {
        let mut passing: Vec<_> = self
            .placements
            .iter()
            .filter(|(_, placed)| {
                matches!(&placed.placement, Placement::Software(reason) if reason.is_passing())
            })
            .map(|(name, _)| *name)
            .collect();
        passing.sort_unstable();
        passing
            .into_iter()
            .filter(|(owner, handle)| self.offload(*owner, *handle))
            .count()
    }

    /// Ends an association, in the adapter first.
    pub fn delete_sa(&mut self, owner: VmId, handle: SaHandle) -> Result<(), NotFound> {
        self.end_sa(owner, handle)?;
        self.reap_sas();
        Ok(())
    }

    /// Ends all of these that are there, in the adapter first; how many there were. Where many
    /// are to go, one search for those that no packet uses any more is enough.
    pub fn delete_sas(&mut self, sas: impl IntoIterator<Item = (VmId, SaHandle)>) -> usize {
        let sas = sas.into_iter();
        let ended = sas.filter(|(owner, handle)| self.end_sa(*owner, *handle).is_ok());
        let count = ended.count();
        self.reap_sas();
        count
    }

    /// Takes an association out of use, and out of the adapter, so that another may have its
    /// name and its place; it can be put back as it was.
    pub fn set_aside(&mut self, owner: VmId, handle: SaHandle) -> Result<SetAside, NotFound> {
        let detached = self.sad.detach(owner, handle)?;
        let placed = self.placements.get(&(owner, handle));
        let software = placed.map(|placed| match &placed.placement {
            Placement::Offloaded { .. } => None,
            Placement::Software(reason) => Some(reason.clone()),
        });
        let wish = placed.map(|placed| placed.wish.clone());
        self.fall_back(owner, handle, SoftwareReason::Withdrawn);
        self.placements.remove(&(owner, handle));
        Ok(SetAside {
            detached,
            owner,
            handle,
            wish: wish.unwrap_or_default(),
            software: software.unwrap_or_default(),
        })
    }

    /// Puts back what was set aside, under its handle, and into the adapter if it was there.
    pub fn put_back(&mut self, aside: SetAside) {
        let name = (aside.owner, aside.handle);
        let was_offloaded = aside.software.is_none();
        let placed = PlacedSa {
            placement: Placement::Software(aside.software.unwrap_or(SoftwareReason::NotAsked)),
            wish: aside.wish,
            pushed: 0,
        };
        self.sad.put_back(aside.detached);
        self.placements.insert(name, placed);
        if was_offloaded {
            self.offload(aside.owner, aside.handle);
        }
    }

    /// Ends what was set aside, as [`delete_sas`](Self::delete_sas) does.
    pub fn end_aside(&mut self, asides: impl IntoIterator<Item = SetAside>) {
        for aside in asides {
            self.sad.retire(aside.detached);
        }
        self.reap_sas();
    }

    fn end_sa(&mut self, owner: VmId, handle: SaHandle) -> Result<(), NotFound> {
        self.fall_back(owner, handle, SoftwareReason::Withdrawn);
        self.placements.remove(&(owner, handle));
        self.sad.delete(owner, handle)
    }

    /// Lets go of deleted associations, keys included, that no packet in flight uses any more;
    /// how many remain.
    pub fn reap_sas(&mut self) -> usize {
        // The adapter first: what it holds, the database can not let go of.
        self.nic.reap_sas();
        self.sad.reap();
        self.sad.draining()
    }

    /// Software reason for each association of an owner that is not in the adapter.
    pub fn in_software(&self, owner: VmId) -> Vec<(SaHandle, SoftwareReason)> {
        let mut found: Vec<_> = self
            .placements
            .iter()
            .filter(|((found, _), _)| *found == owner)
            .filter_map(|((_, handle), placed)| match &placed.placement {
                Placement::Software(reason) => Some((*handle, reason.clone())),
                Placement::Offloaded { .. } => None,
            })
            .collect();
        found.sort_by_key(|(handle, _)| *handle);
        found
    }

    pub(super) fn fall_back(&mut self, owner: VmId, handle: SaHandle, reason: SoftwareReason) {
        let Some(placed) = self.placements.get_mut(&(owner, handle)) else {
            return;
        };
        if let Placement::Offloaded {
            handle: offloaded,
            mode,
        } = placed.placement
        {
            // It may be gone already, which is what the caller wants.
            let _ = self.nic.delete_sa(owner, offloaded);
            self.offloaded.remove(&offloaded);
            self.followed.remove(&(owner, handle));
            if mode == OffloadMode::Crypto {
                self.leaving.insert(offloaded, (owner, handle));
            }
        }
        placed.placement = Placement::Software(reason);
    }

    /// Crypto mode: the association that the adapter has, or had, by this name, as long as it
    /// exists.
    pub(super) fn in_crypto_mode(
        &self,
        offloaded: OffloadHandle,
    ) -> Option<(VmId, SaHandle, Arc<EspSa>)> {
        let known = self.offloaded.get(&offloaded);
        let (owner, handle) = *known.or_else(|| self.leaving.get(&offloaded))?;
        let sa = self.sad.get(owner, handle).ok()?;
        Some((owner, handle, Arc::clone(sa)))
    }

    /// Forgets the names that the adapter has let go of and no packet on its way has any more.
    pub(super) fn forget_left(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let mut named = self.nic.crypto_indicated();
        for machine in self.machines.values() {
            named.extend(machine.outstanding.framed());
        }
        self.leaving.retain(|handle, _| named.contains(handle));
    }

    /// What the adapter reports changes where associations and machines are.
    pub(super) fn follow_events(&mut self) {
        if !self.nic.has_events() {
            return;
        }
        let (events, _) = self.nic.take_events();
        for event in events {
            match &event {
                NicEvent::SaLost { handle, why, .. } => {
                    if let Some((owner, sa)) = self.offloaded.get(handle).copied() {
                        self.fall_back(owner, sa, SoftwareReason::Lost(*why));
                    }
                }
                NicEvent::Reset => {
                    let all: Vec<_> = self.offloaded.values().copied().collect();
                    for (owner, sa) in all {
                        self.fall_back(owner, sa, SoftwareReason::Reset);
                    }
                    self.nic.reap_sas();
                }
                NicEvent::FunctionLost(_, vm) => self.back_to_synthetic(*vm),
                _ => {}
            }
            if self.events.len() < super::EVENTS {
                self.events.push(event);
            }
        }
    }

    /// Crypto mode with ESN: the adapter has to know about where the numbers are.
    pub(super) fn push_sequences(&mut self, now: Timestamp) {
        for (owner, handle) in &self.followed {
            let Some(placed) = self.placements.get_mut(&(*owner, *handle)) else {
                continue;
            };
            let Placement::Offloaded {
                handle: offloaded, ..
            } = placed.placement
            else {
                continue;
            };
            let Ok(sa) = self.sad.get(*owner, *handle) else {
                continue;
            };
            let sequence = sa.sequence();
            if sequence.wrapping_sub(placed.pushed) >= PUSH_EVERY {
                placed.pushed = sequence;
                // Crypto mode and ESN are known to hold; the handle may be gone, see above.
                let _ = self.nic.update_sa(*owner, offloaded, sequence, now);
            }
        }
    }

    /// What a packet of an association looks like on the wire, apart from its ESP.
    pub(super) fn wire_form(&self, owner: VmId, handle: SaHandle) -> WireForm {
        let wish = self
            .placements
            .get(&(owner, handle))
            .map(|placed| &placed.wish);
        WireForm {
            vlan: wish.and_then(|wish| wish.vlan),
            rewrite: wish.and_then(|wish| wish.rewrite),
        }
    }
}

/// VLAN and addresses around the packets of an association.
#[derive(Clone, Copy, Debug)]
pub(super) struct WireForm {
    pub(super) vlan: Option<VlanId>,
    pub(super) rewrite: Option<Rewrite>,
}

impl WireForm {
    /// Gives this form to the frame of an ESP packet.
    pub(super) fn apply<B: Buffer>(&self, frame: &mut Frame<B>) {
        frame.dress(self.vlan, self.rewrite.as_ref());
    }
}
