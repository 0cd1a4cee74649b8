//! Verbs on associations.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use vesper_esp::EspSa;
use vesper_offload::{OffloadMode, OffloadWish, Placement, Rewrite, SaOffload};
use vesper_sa::{
    Direction, Lifetime, Mode, Past, SaIdentity, SaParams, SaUpdate, Scope as ReceiveScope,
    Timestamp, VmId,
};
use vesper_verify::xfrm::{Offload, State};
use zeroize::Zeroizing;

use super::change::{Draft, NewSa, packet_refused, quota_exceeded};
use super::event::Subject;
use super::filter::in_scope;
use super::record::{Origin, SaId, SaRecord, VmRecord};
use super::spec::{Resume, SaSpec};
use super::{Node, Plane, Refusal, SaFilter, Scope};
use crate::store::Standing;

/// What associations that are made together share.
#[derive(Default)]
pub(super) struct Making {
    /// The moment at each node.
    clocks: HashMap<usize, Timestamp>,
    /// How machines that change with them will prefer them to be offloaded.
    pub(super) modes: HashMap<VmId, Vec<OffloadMode>>,
}

/// An association as its words describe it, before its keys are expanded.
struct Described {
    index: usize,
    node: Node,
    vm: Option<Arc<VmRecord>>,
    params: SaParams,
    limit: u32,
    wish: OffloadWish,
    packet_only: bool,
}

impl Plane {
    /// Adds associations, all or none; each works from the moment at which this returns. For a
    /// rekey add the new inbound one first, then, when the peer has it, the new outbound one,
    /// which takes over at once; the old ones stay until they are deleted.
    ///
    /// # Errors
    /// The first one that can not be added.
    pub fn add_sas(
        &self,
        scope: Scope,
        specs: Vec<SaSpec>,
        origin: Origin,
    ) -> Result<Vec<SaId>, Refusal> {
        // Counted before keys are expanded, so that asking for too much costs little.
        self.check_quotas(scope, &specs)?;
        let made = self.change_sas(move |plane| {
            let mut draft = Draft::default();
            let mut making = Making::default();
            for spec in &specs {
                let spec = spec.clone();
                draft
                    .add
                    .push(plane.make(scope, spec, origin, &mut making)?);
            }
            Ok(draft)
        })?;
        let ids = made.ids;
        for record in ids.iter().filter_map(|id| self.sa(Scope::All, *id)) {
            self.tell_sa("sa-added", &record);
        }
        Ok(ids)
    }

    /// Changes the limits of an association, which is all that its words may say differently
    /// (`ip xfrm state update`).
    pub fn update_sa(&self, scope: Scope, state: &State) -> Result<SaId, Refusal> {
        let _changing = self.begin_change();
        let described = self.describe(scope, state)?;
        let found = self
            .registry()
            .sas
            .values()
            .find(|record| {
                record.node == described.index
                    && in_scope(scope, record)
                    && record.sa.owner() == described.params.owner
                    && record.sa.direction() == described.params.direction
                    && record.sa.spi() == described.params.spi
                    && record.sa.params().destination == described.params.destination
            })
            .cloned();
        let record = found.ok_or_else(|| Refusal::not_found("spi", state.spi))?;
        if self.fingerprint(state) != record.fingerprint {
            return Err(Refusal::words(
                "update",
                "",
                "only `limit` can be changed, and the words differ in something else",
                "add a new SA and delete this one",
            ));
        }
        let update = SaUpdate {
            lifetime: Some(state.lifetime),
            ..SaUpdate::default()
        };
        let events = record.sa.update(&update).map_err(|error| {
            Refusal::conflict("spi", state.spi, error.to_string(), "replace the SA")
        })?;
        let secret = secret(state, &record.host, record.vm.as_deref());
        self.persistence.commit(&[super::Change::PutSa {
            host: &record.host,
            sa: record.identity(),
            words: super::persistence::Secret(&secret),
            configured: record.origin == Origin::Configured,
        }])?;
        let changed = SaRecord {
            lifetime: state.lifetime,
            words: state.words().into(),
            ..(*record).clone()
        };
        self.registry_mut().insert_sa(changed);
        self.tell_sa("sa-updated", &record);
        self.report(
            &record.host,
            record.sa.messages(events).map(vesper_offload::NicEvent::Sa),
        );
        Ok(record.id)
    }

    /// Deletes the associations that are meant; how many there were.
    pub fn delete_sas(&self, scope: Scope, filter: &SaFilter) -> Result<usize, Refusal> {
        let filter = filter.clone();
        self.delete(move |plane| Ok(plane.sas(scope, &filter)))
    }

    /// Deletes the one association that is meant.
    pub fn delete_one(&self, scope: Scope, filter: &SaFilter) -> Result<(), Refusal> {
        let filter = filter.clone();
        self.delete(move |plane| {
            let spi = || filter.spi.map(|spi| spi.to_string()).unwrap_or_default();
            let meant = plane.sas(scope, &filter);
            match meant.len() {
                0 => Err(Refusal::not_found("spi", spi())),
                1 => Ok(meant),
                several => Err(Refusal::conflict(
                    "spi",
                    spi(),
                    format!("these words mean {several} SAs"),
                    "say more of host, vm, src, dst, spi and dir, or flush them",
                )),
            }
        })
        .map(drop)
    }

    /// Deletes the association with this number.
    pub fn delete_sa(&self, scope: Scope, id: SaId) -> Result<(), Refusal> {
        self.delete(move |plane| {
            let record = plane.sa(scope, id);
            Ok(vec![record.ok_or_else(|| Refusal::not_found("sa", id.0))?])
        })
        .map(drop)
    }

    /// The associations that are meant, oldest first.
    pub fn sas(&self, scope: Scope, filter: &SaFilter) -> Vec<Arc<SaRecord>> {
        let registry = self.registry();
        let records = registry.sas.values();
        records
            .filter(|record| filter.matches(scope, record))
            .cloned()
            .collect()
    }

    /// The association with this number.
    pub fn sa(&self, scope: Scope, id: SaId) -> Option<Arc<SaRecord>> {
        let record = self.registry().sas.get(&id).cloned()?;
        in_scope(scope, &record).then_some(record)
    }

    /// The words of an association with its keys.
    pub fn secret_words(&self, record: &SaRecord) -> Result<Option<Zeroizing<String>>, Refusal> {
        Ok(self.persistence.words(&record.host, &record.identity())?)
    }

    /// Why the adapter would not take an association with these words now; in each mode that
    /// would be tried, with its reasons, none of which means yes.
    pub fn why_not(
        &self,
        state: &State,
    ) -> Result<Vec<(OffloadMode, Vec<vesper_offload::WhyNot>)>, Refusal> {
        let described = self.describe(Scope::All, state)?;
        let nic = described.node.handle.nic();
        let owner = described.params.owner;
        let port = nic.vm_usage(owner).map(|usage| usage.port);
        let reasons = |mode| {
            let offload = SaOffload {
                mode,
                port: port.unwrap_or_default(),
                vlan: described.wish.vlan,
                rewrite: described.wish.rewrite,
                inner_checksum: described.wish.inner_checksum,
            };
            nic.why_not(&described.params, state.keys.suite(), &offload)
        };
        let modes = [OffloadMode::Packet, OffloadMode::Crypto];
        Ok(modes.map(|mode| (mode, reasons(mode))).to_vec())
    }

    /// Enforces limits by time on associations that carry nothing, and reports what ends; to be
    /// called about once a second.
    pub fn expire(&self) {
        let mut due: HashMap<usize, Vec<Arc<SaRecord>>> = HashMap::new();
        let is_timed = |lifetime: &Lifetime| {
            let limits = [lifetime.soft, lifetime.hard];
            limits.iter().any(|l| l.time.is_some() || l.idle.is_some())
        };
        for record in self.registry().sas.values() {
            if is_timed(&record.lifetime) {
                due.entry(record.node).or_default().push(Arc::clone(record));
            }
        }
        for (index, records) in due {
            let Ok(node) = self.node(index) else { continue };
            let Ok(now) = Self::now(&node) else { continue };
            for record in records {
                let events = record.sa.expire(now);
                let messages = record.sa.messages(events);
                self.report(&record.host, messages.map(vesper_offload::NicEvent::Sa));
            }
        }
    }

    /// Asks a node where its associations are at work.
    pub fn refresh_placements(&self, host: &str) {
        let Ok((index, node)) = self.node_named(Some(host)) else {
            return;
        };
        let asked: Vec<_> = self
            .registry()
            .sas
            .values()
            .filter(|record| record.node == index)
            .map(|record| (record.id, record.sa.owner(), record.handle))
            .collect();
        let answer = node.handle.call(move |host, _| {
            let place = |(id, owner, handle)| Some((id, host.placement(owner, handle)?.clone()));
            asked.into_iter().filter_map(place).collect::<Vec<_>>()
        });
        let mut registry = self.registry_mut();
        for (id, placement) in answer.unwrap_or_default() {
            let moved = registry
                .sas
                .get(&id)
                .filter(|record| record.placement != placement)
                .map(|record| SaRecord {
                    placement: placement.clone(),
                    ..(**record).clone()
                });
            if let Some(moved) = moved {
                registry.insert_sa(moved);
            }
        }
    }

    /// Makes an association from its words; it is not in force yet.
    pub(super) fn make(
        &self,
        scope: Scope,
        spec: SaSpec,
        origin: Origin,
        making: &mut Making,
    ) -> Result<NewSa, Refusal> {
        let SaSpec { state, resume } = spec;
        let mut described = self.describe(scope, &state)?;
        let follows_machine = state.offload.is_none() && described.vm.is_some();
        if follows_machine && let Some(modes) = making.modes.get(&described.params.owner) {
            described.wish.modes.clone_from(modes);
        }
        if described.packet_only {
            let enabled = described.node.handle.nic().enabled();
            let suite = state.keys.suite();
            let reasons = enabled.why_not(&described.params, suite, OffloadMode::Packet);
            if !reasons.is_empty() {
                let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                return Err(packet_refused(&reasons.join("; ")));
            }
        }
        let now = match making.clocks.get(&described.index) {
            Some(now) => *now,
            None => {
                let now = Self::now(&described.node)?;
                making.clocks.insert(described.index, now);
                now
            }
        };
        let recovered = resume != Resume::New;
        let standing = match resume {
            Resume::New => {
                let name = SaIdentity {
                    owner: described.params.owner,
                    direction: described.params.direction,
                    destination: described.params.destination,
                    spi: described.params.spi,
                };
                let configured = origin == Origin::Configured;
                self.persistence.standing(
                    described.node.handle.name(),
                    &name,
                    &state.keys,
                    configured,
                )?
            }
            Resume::After(sequence) => Standing::After {
                sequence,
                past: Past::default(),
            },
            Resume::NeedsRekey(loss) => Standing::NeedsRekey(loss),
        };
        let needs_rekey = match &standing {
            Standing::NeedsRekey(loss) => Some(loss.to_string().into()),
            _ => None,
        };
        let sa = self.expand(&state, described.params, &standing, now)?;
        let host: Arc<str> = described.node.handle.name().into();
        let vm: Option<Arc<str>> = described.vm.map(|vm| vm.spec.name.as_str().into());
        Ok(NewSa {
            node: described.index,
            sa: Arc::new(sa),
            wish: described.wish,
            packet_only: described.packet_only,
            follows_machine,
            limit: described.limit,
            lifetime: state.lifetime,
            words: state.words().into(),
            secret: secret(&state, &host, vm.as_deref()),
            fingerprint: self.fingerprint(&state),
            host,
            vm,
            origin,
            needs_rekey,
            recovered,
        })
    }

    fn expand(
        &self,
        state: &State,
        params: SaParams,
        standing: &Standing,
        now: Timestamp,
    ) -> Result<EspSa, Refusal> {
        let cipher = state.keys.fastest_cipher().map_err(|error| {
            Refusal::words(
                "aead",
                "",
                error.to_string(),
                "give a key that fits the suite",
            )
        })?;
        // RFC 4303 section 3.3.3: "the sender MUST NOT send a packet on an SA if doing so would
        // cause the sequence number to cycle."
        if let Standing::After { sequence, .. } = standing
            && !params.esn
            && *sequence >= u64::from(u32::MAX)
            && params.sequence < *sequence
        {
            return Err(Refusal::conflict(
                "spi",
                state.spi,
                format!(
                    "the numbers of its key are used up: it has come to {sequence}, and without \
                     `flag esn` there are none above {}",
                    u32::MAX
                ),
                "give it a new key",
            ));
        }
        standing.resume(params, cipher, now).map_err(|error| {
            Refusal::words(
                "spi",
                state.spi,
                error.to_string(),
                "change what contradicts itself",
            )
        })
    }

    /// Whose it is, on which node, in which direction, and how it is to be offloaded.
    fn describe(&self, scope: Scope, state: &State) -> Result<Described, Refusal> {
        let (index, node, vm) = self.locate(scope, state.host.as_deref(), state.vm.as_deref())?;
        let direction = direction(state, &node)?;
        let mut params = state.params(direction);
        params.owner = vm.as_ref().map_or(VmId::HOST, |vm| vm.id);
        let is_at_host =
            node.spec.addresses.is_empty() || node.spec.addresses.contains(&state.destination);
        if vm.is_some() && (state.mode == Mode::Transport || !is_at_host) {
            // The packets are addressed to the machine itself.
            params.scope = ReceiveScope::Vm;
        }
        let preferred = vm.as_ref().map_or_else(
            || vec![OffloadMode::Packet, OffloadMode::Crypto],
            |vm| vm.spec.offload.clone(),
        );
        let modes = match state.offload {
            None => preferred,
            Some(Offload::Packet) => vec![OffloadMode::Packet],
            Some(Offload::Crypto) => vec![OffloadMode::Crypto],
        };
        let wish = OffloadWish {
            modes,
            vlan: match params.scope {
                ReceiveScope::Host => node.spec.vlan,
                ReceiveScope::Vm => vm.as_ref().and_then(|vm| vm.spec.address.vlan),
            },
            rewrite: rewrite(state.mode, direction, &node, vm.as_deref()),
            inner_checksum: false,
        };
        Ok(Described {
            index,
            limit: vm.as_ref().map_or(u32::MAX, |vm| vm.spec.sa_limit),
            node,
            vm,
            params,
            wish,
            packet_only: state.offload == Some(Offload::Packet),
        })
    }

    /// The node and the machine that words mean.
    pub(super) fn locate(
        &self,
        scope: Scope,
        host: Option<&str>,
        vm: Option<&str>,
    ) -> Result<(usize, Node, Option<Arc<VmRecord>>), Refusal> {
        if let Scope::Vm(own) = scope {
            let own = self.registry().vms.get(&own).cloned();
            let own = own.ok_or_else(|| Refusal::not_found("vm", vm.unwrap_or_default()))?;
            let node = self.node(own.node)?;
            let name = own.spec.name.as_str();
            let long = format!("{}/{name}", own.spec.host);
            if vm.is_some_and(|vm| vm != name && vm != long) {
                return Err(Refusal::not_found("vm", vm.unwrap_or_default()));
            }
            if host.is_some_and(|host| host != own.spec.host) {
                return Err(Refusal::not_found("host", host.unwrap_or_default()));
            }
            return Ok((own.node, node, Some(own)));
        }
        let Some(vm) = vm else {
            let (index, node) = self.node_named(host)?;
            return Ok((index, node, None));
        };
        let found = self.vm_named(host, vm)?;
        Ok((found.node, self.node(found.node)?, Some(found)))
    }

    pub(super) fn check_quotas(&self, scope: Scope, specs: &[SaSpec]) -> Result<(), Refusal> {
        let mut counts: HashMap<VmId, u32> = HashMap::new();
        for SaSpec { state, .. } in specs {
            let (host, vm) = (state.host.as_deref(), state.vm.as_deref());
            let (index, _, Some(vm)) = self.locate(scope, host, vm)? else {
                continue;
            };
            let count = counts.entry(vm.id).or_default();
            *count += 1;
            let limit = vm.spec.sa_limit;
            if self.registry().owned(index, vm.id).saturating_add(*count) > limit {
                return Err(quota_exceeded(Some(&vm.spec.name), limit));
            }
        }
        Ok(())
    }

    fn delete(
        &self,
        meant: impl Fn(&Self) -> Result<Vec<Arc<SaRecord>>, Refusal> + Send + 'static,
    ) -> Result<usize, Refusal> {
        let made = self.change_sas(move |plane| {
            Ok(Draft {
                remove: meant(plane)?,
                ..Draft::default()
            })
        })?;
        let count = made.gone.len();
        for (host, subject) in made.gone {
            let text = describe_subject(&subject);
            self.events
                .tell("sa-deleted", &host, subject, format!("{text} deleted"));
        }
        Ok(count)
    }

    pub(super) fn tell_sa(&self, kind: &'static str, record: &SaRecord) {
        let subject = self.subject(&record.identity());
        let verb = kind.strip_prefix("sa-").unwrap_or(kind);
        let text = format!("{} {verb}", describe_subject(&subject));
        self.events.tell(kind, &record.host, subject, text);
    }

    /// What tells words with their keys apart, but not limits, which may change. Means nothing
    /// outside of this process.
    pub(super) fn fingerprint(&self, state: &State) -> [u8; 32] {
        let mut state = state.clone();
        // Whose it is, is no part of the words that have to be the same: it may be left out.
        (state.host, state.vm) = (None, None);
        state.lifetime = Lifetime::default();
        let mut hash = Sha256::new();
        hash.update(self.salt);
        hash.update(state.words_with_keys().as_bytes());
        hash.finalize().into()
    }
}

/// The words with keys and with `host` and `vm`, so that they say all by themselves.
fn secret(state: &State, host: &str, vm: Option<&str>) -> Zeroizing<String> {
    let mut state = state.clone();
    state.host = Some(host.to_owned());
    state.vm = vm.map(str::to_owned);
    state.words_with_keys()
}

fn describe_subject(subject: &Subject) -> String {
    let owner = subject.vm.as_deref().unwrap_or("host");
    match &subject.sa {
        Some(sa) => format!(
            "{} SA {} to {} of {owner}",
            sa.direction, sa.spi, sa.destination
        ),
        None => owner.to_owned(),
    }
}

/// The direction that the words say, or that the addresses of the node tell.
fn direction(state: &State, node: &Node) -> Result<Direction, Refusal> {
    let is_ours = |address| node.spec.addresses.contains(address);
    match (
        state.direction,
        is_ours(&state.source),
        is_ours(&state.destination),
    ) {
        (Some(direction), _, _) => Ok(direction),
        (None, true, false) => Ok(Direction::Outbound),
        (None, false, true) => Ok(Direction::Inbound),
        (None, _, _) => Err(Refusal::words(
            "dir",
            "",
            "missing, and the addresses do not tell it",
            "add `dir in` or `dir out`",
        )),
    }
}

/// The Ethernet addresses around what comes out: outbound towards the next hop, inbound towards
/// the machine. Transport mode leaves the packet's own.
fn rewrite(
    mode: Mode,
    direction: Direction,
    node: &Node,
    vm: Option<&VmRecord>,
) -> Option<Rewrite> {
    let vm = vm.filter(|_| mode == Mode::Tunnel)?;
    let gateway = node.spec.gateway.unwrap_or_default();
    Some(match direction {
        Direction::Outbound => Rewrite {
            destination: gateway,
            source: node.spec.mac,
        },
        Direction::Inbound => Rewrite {
            destination: vm.spec.address.mac,
            source: node.spec.mac,
        },
    })
}

impl SaRecord {
    /// Whether the adapter has it, and in which mode; or why not.
    pub const fn offloaded(&self) -> Result<OffloadMode, &vesper_offload::SoftwareReason> {
        match &self.placement {
            Placement::Offloaded { mode, .. } => Ok(*mode),
            Placement::Software(reason) => Err(reason),
        }
    }
}
