//! What happens, told to whoever subscribes.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::broadcast;
use vesper_offload::NicEvent;
use vesper_sa::{self as sa, SaIdentity, VmId};

use super::{Plane, Scope};

/// Events that a slow subscriber may be behind before it loses some.
const BEHIND: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Grows by one from event to event, so that losses can be seen.
    pub number: u64,
    /// When it was told.
    pub time: SystemTime,
    /// What it was, in a word: `soft-expire`, `sa-added`...
    pub kind: &'static str,
    /// The host.
    pub host: Arc<str>,
    /// Whom it is about.
    pub subject: Subject,
    /// The same for people.
    pub text: String,
}

/// Whom an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The machine, by number.
    pub owner: Option<VmId>,
    /// The machine, by name.
    pub vm: Option<Arc<str>>,
    /// The association.
    pub sa: Option<SaIdentity>,
    /// The `reqid` that an association is wanted for.
    pub reqid: Option<u32>,
}

impl Event {
    /// Whether it is for an asker of this scope.
    pub fn is_for(&self, scope: Scope) -> bool {
        match scope {
            Scope::All => true,
            // What is about an association of the machine, or the wish for one.
            Scope::Vm(vm) => {
                self.subject.owner == Some(vm)
                    && (self.subject.sa.is_some() || self.subject.reqid.is_some())
            }
        }
    }
}

/// Tells events to any number of subscribers. Nobody waits for a slow one.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    last: AtomicU64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BEHIND),
            last: AtomicU64::new(0),
        }
    }
}

impl Events {
    /// What happens from now on. Who falls behind is told how much was lost.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// Tells what happened.
    pub fn tell(&self, kind: &'static str, host: &Arc<str>, subject: Subject, text: String) {
        let event = Event {
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            time: SystemTime::now(),
            kind,
            host: Arc::clone(host),
            subject,
            text,
        };
        // Nobody may be listening.
        let _ = self.sender.send(Arc::new(event));
    }
}

impl Plane {
    /// Takes what the hosts of all nodes have to report; to be called about ten times a second.
    pub fn collect(&self) {
        for node in self.nodes() {
            let events = node.call(|host, _| host.take_events());
            // A node that has ended reports nothing.
            self.report(node.name(), events.unwrap_or_default());
        }
    }

    /// Tells what the host of a node has reported, and follows it.
    pub fn report(&self, host: &str, events: impl IntoIterator<Item = NicEvent>) {
        let host: Arc<str> = host.into();
        let mut moved = false;
        for event in events {
            if let NicEvent::Sa(event) = &event {
                self.persistence.notice(&host, event);
            }
            moved |= matches!(
                event,
                NicEvent::SaLost { .. } | NicEvent::Reset | NicEvent::CapabilitiesChanged
            );
            if let Some((kind, subject)) = self.classify(&event) {
                let text = match &event {
                    NicEvent::Sa(event) => self.text(event),
                    other => other.to_string(),
                };
                self.events.tell(kind, &host, subject, text);
            }
        }
        if moved {
            self.refresh_placements(&host);
        }
    }

    /// The kind of an event, and whom it is about; `None` for what only the daemon itself
    /// acts upon.
    fn classify(&self, event: &NicEvent) -> Option<(&'static str, Subject)> {
        let of_sa = |kind, sa: &SaIdentity| Some((kind, self.subject(sa)));
        let of_vm = |kind, owner: Option<VmId>, reqid| {
            let subject = Subject {
                owner,
                vm: owner.and_then(|owner| self.vm_name(owner)),
                sa: None,
                reqid,
            };
            Some((kind, subject))
        };
        match event {
            NicEvent::Sa(event) => match event {
                sa::Event::Acquire { owner, reqid, .. } => {
                    of_vm("acquire", Some(*owner), Some(*reqid))
                }
                sa::Event::SoftExpire(sa) => of_sa("soft-expire", sa),
                sa::Event::HardExpire(sa) => of_sa("hard-expire", sa),
                sa::Event::SequenceHigh(sa) => of_sa("sequence-high", sa),
                sa::Event::SequenceOverflow(sa) => of_sa("sequence-overflow", sa),
                sa::Event::LeaseLow(_) => None,
                sa::Event::AuthenticationFailures(sa) => of_sa("authentication-failures", sa),
                sa::Event::BadSpi { receiver, .. } => of_vm("bad-spi", *receiver, None),
                sa::Event::PacketRefused { sa, .. } => match sa {
                    Some(sa) => of_sa("packet-refused", sa),
                    None => of_vm("packet-refused", None, None),
                },
                sa::Event::CapacityLow { owner, .. } => of_vm("capacity-low", Some(*owner), None),
                sa::Event::Reset => of_vm("reset", None, None),
            },
            NicEvent::SaLost { owner, .. } => of_vm("sa-lost", Some(*owner), None),
            NicEvent::Reset => of_vm("reset", None, None),
            NicEvent::FunctionLost(_, vm) => of_vm("function-lost", Some(*vm), None),
            NicEvent::CapabilitiesChanged => of_vm("capabilities-changed", None, None),
            _ => None,
        }
    }

    fn text(&self, event: &sa::Event) -> String {
        let name = |owner: VmId| match self.vm_name(owner) {
            Some(name) => name.to_string(),
            None => owner.to_string(),
        };
        let sa = |sa: &SaIdentity| {
            format!(
                "{} SA {} to {} of {}",
                sa.direction,
                sa.spi,
                sa.destination,
                name(sa.owner)
            )
        };
        match event {
            sa::Event::Acquire { owner, reqid, flow } => format!(
                "{} needs an SA with reqid {reqid} for {} to {}",
                name(*owner),
                flow.source,
                flow.destination
            ),
            sa::Event::SoftExpire(it) => format!("{} has reached a soft limit; rekey it", sa(it)),
            sa::Event::HardExpire(it) => {
                format!(
                    "{} has reached a hard limit and carries nothing more",
                    sa(it)
                )
            }
            sa::Event::SequenceHigh(it) => {
                format!("{} has used 7/8 of its sequence numbers; rekey it", sa(it))
            }
            sa::Event::SequenceOverflow(it) => {
                let from = self
                    .source(it)
                    .map_or_else(String::new, |source| format!(" from {source}"));
                format!("{}{from} has used up its sequence numbers", sa(it))
            }
            sa::Event::LeaseLow(it) => format!("{} has used half of its lease", sa(it)),
            sa::Event::AuthenticationFailures(it) => {
                format!("packets of {} fail authentication", sa(it))
            }
            sa::Event::BadSpi { packet, .. } => {
                format!("a packet is of no known SA: {packet}")
            }
            sa::Event::PacketRefused { reason, packet, .. } => {
                let what = match reason {
                    sa::Auditable::NoAssociation => "is of no known SA",
                    sa::Auditable::Fragment => "is a fragment",
                    sa::Auditable::Replay => "is a replay",
                    sa::Auditable::Integrity => "fails its integrity check",
                };
                format!("a packet {what}: {packet}")
            }
            sa::Event::CapacityLow { owner, used, limit } => {
                format!("{} uses {used} of {limit} SAs", name(*owner))
            }
            sa::Event::Reset => "the adapter was reset".to_owned(),
        }
    }

    /// The outer source address of an association.
    fn source(&self, sa: &SaIdentity) -> Option<IpAddr> {
        let registry = self.registry();
        let mut records = registry.sas.values();
        let record = records.find(|record| record.identity() == *sa)?;
        Some(record.sa.params().source)
    }

    /// An association as the subject of an event.
    pub(crate) fn subject(&self, sa: &SaIdentity) -> Subject {
        Subject {
            owner: Some(sa.owner),
            vm: self.vm_name(sa.owner),
            sa: Some(*sa),
            reqid: None,
        }
    }

    fn vm_name(&self, vm: VmId) -> Option<Arc<str>> {
        let registry = self.registry();
        registry.vms.get(&vm).map(|vm| vm.spec.name.as_str().into())
    }
}
