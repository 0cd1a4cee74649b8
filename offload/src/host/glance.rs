//! Recognising received frames that are like the one before, without looking them up again.

use vesper_esp::Buffer;
use vesper_esp::wire::EncapsulationPorts;
use vesper_sa::VmId;

use crate::ethernet::{Frame, Link, VlanId, ethertype};
use crate::flow_key::FlowKey;
use crate::nic::peek;
use crate::queue::QueueId;

/// A flow of clear frames, and who gets copies of them, with which tag.
#[derive(Clone, Copy)]
pub(super) struct ClearFlow {
    link: Link,
    vlan: Option<VlanId>,
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
        (!ports.any(|port| encapsulating.contains(port))).then_some(Self {
            link: frame.link,
            vlan: frame.vlan,
            key,
            to,
        })
    }

    pub(super) fn matches<B: Buffer>(&self, frame: &Frame<B>) -> bool {
        (self.link, self.vlan) == (frame.link, frame.vlan)
            && FlowKey::of(frame.payload.data()) == Some(self.key)
    }
}

/// How the latest packet that a glance recognises came and what it was found to be: the next
/// one that is like it is the same. Nothing that this depends on changes within a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Latest {
    link: Link,
    vlan: Option<VlanId>,
    receiver: Option<VmId>,
    queue: QueueId,
    /// Address and SPI, see [`peek`].
    key: u64,
}

impl Latest {
    pub(super) fn of<B: Buffer>(
        frame: &Frame<B>,
        receiver: Option<VmId>,
        queue: QueueId,
    ) -> Option<Self> {
        let key = peek(frame.payload.data()).filter(|_| frame.link.ethertype == ethertype::IPV4)?;
        Some(Self {
            link: frame.link,
            vlan: frame.vlan,
            receiver,
            queue,
            key,
        })
    }
}
