//! Recognising received clear frames that are like the one before, without looking them up again.

use vesper_esp::Buffer;
use vesper_esp::wire::EncapsulationPorts;
use vesper_sa::VmId;

use crate::ethernet::{Frame, VlanId};
use crate::flow_key::FlowKey;

/// A flow of clear frames, and who gets copies of them, with which tag.
#[derive(Clone, Copy)]
pub(super) struct ClearFlow {
    key: FlowKey,
    pub(super) to: (VmId, Option<VlanId>),
}

impl ClearFlow {
    /// The flow of a frame that went to a machine, with this tag, if a glance recognises its next
    /// frame.
    pub(super) fn of<B: Buffer>(frame: &Frame<B>, to: (VmId, Option<VlanId>)) -> Option<Self> {
        let key = FlowKey::of(frame.payload.data()).filter(|_| frame.is_ip())?;
        // Through some ports UDP carries ESP and other things.
        let encapsulating = EncapsulationPorts::default();
        let mut ports = key.ports().into_iter();
        (!ports.any(|port| encapsulating.contains(port))).then_some(Self { key, to })
    }

    /// Whether a packet behind the same Ethernet header is of this flow.
    #[inline(always)]
    pub(super) fn matches(&self, packet: &[u8]) -> bool {
        FlowKey::of(packet) == Some(self.key)
    }
}
