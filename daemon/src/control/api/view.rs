//! How things of the plane look from outside.

use std::fmt;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use vesper_offload::SoftwareReason;
use vesper_sa::{Direction, Mode, ReplayProtection, Spi};
use vesper_verify::xfrm::{PolicyAction, selector_words};

use crate::control::types;
use crate::plane::{Event, Finding, Origin, Plane, PolicyRecord, SaRecord, Severity, VmRecord};

/// An association as [`types::Sa`] has it, field by field, without a copy of anything: a list has
/// ten thousand of them. Tests hold the two against each other.
#[derive(Serialize)]
pub(super) struct Sa<'a> {
    id: u64,
    host: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<&'a str>,
    dir: &'static str,
    #[serde(serialize_with = "shown")]
    spi: Spi,
    src: IpAddr,
    dst: IpAddr,
    mode: &'static str,
    reqid: u32,
    suite: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    needs_rekey: Option<&'a str>,
    #[serde(serialize_with = "shown")]
    offload: Offload<'a>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "shown_if_any"
    )]
    why_not: Option<&'a SoftwareReason>,
    esn: bool,
    replay_window: u32,
    sequence: u64,
    packets: u64,
    bytes: u64,
    replays: u64,
    authentication_failures: u64,
    refused: u64,
    age_seconds: u64,
    origin: &'static str,
    words: &'a str,
}

/// Where an association is at work.
struct Offload<'a>(&'a SaRecord);

/// An association at this moment; `secret` are its words with keys, if they were asked for.
pub(super) fn sa<'a>(record: &'a SaRecord, secret: Option<&'a str>, now: SystemTime) -> Sa<'a> {
    let params = record.sa.params();
    let statistics = record.sa.statistics();
    Sa {
        id: record.id.0,
        host: &record.host,
        vm: record.vm.as_deref(),
        dir: direction(params.direction),
        spi: params.spi,
        src: params.source,
        dst: params.destination,
        mode: match params.mode {
            Mode::Transport => "transport",
            Mode::Tunnel => "tunnel",
        },
        reqid: params.reqid,
        suite: record.sa.context().cipher().suite().name,
        state: record.state(),
        needs_rekey: record.needs_rekey.as_deref(),
        offload: Offload(record),
        why_not: record.offloaded().err(),
        esn: params.esn,
        replay_window: match params.replay {
            ReplayProtection::Window(window) => window.get(),
            ReplayProtection::Off => 0,
        },
        sequence: record.sa.sequence(),
        packets: statistics.packets,
        bytes: statistics.bytes,
        replays: statistics.replays,
        authentication_failures: statistics.authentication_failures,
        refused: statistics.refused,
        age_seconds: now
            .duration_since(record.added)
            .unwrap_or_default()
            .as_secs(),
        origin: origin(record.origin),
        words: secret.unwrap_or(&record.words),
    }
}

pub(super) fn policy(record: &PolicyRecord) -> types::Policy {
    types::Policy {
        index: record.id,
        host: record.host.to_string(),
        vm: record.vm.to_string(),
        dir: direction(record.line.direction).to_owned(),
        priority: record.line.priority,
        selector: selector_words(&record.line.selector)
            .trim_start()
            .to_owned(),
        action: match record.line.action {
            PolicyAction::Block => "discard",
            PolicyAction::Pass => "bypass",
            PolicyAction::Protect(_) => "protect",
        }
        .to_owned(),
        origin: origin(record.origin).to_owned(),
        words: record.line.to_string(),
    }
}

pub(super) fn vm(plane: &Plane, record: &VmRecord) -> types::Vm {
    let usage = plane.vm_usage(record);
    let spec = &record.spec;
    types::Vm {
        host: spec.host.clone(),
        name: spec.name.clone(),
        id: record.id.0,
        mac: spec.address.mac.to_string(),
        vlan: spec.address.vlan.map(|vlan| vlan.get()),
        sas: types::Usage {
            used: plane.sas_of(record),
            limit: spec.sa_limit,
        },
        offloaded: usage.map_or(types::Usage { used: 0, limit: 0 }, |usage| types::Usage {
            used: usage.ipsec_sas.used,
            limit: usage.ipsec_sas.capacity,
        }),
        queue: usage.and_then(|usage| usage.queue).map(|queue| queue.0),
        function: usage.and_then(|usage| usage.function).map(|vf| vf.0),
        processor: usage.map_or(0, |usage| usage.processor),
        offload: spec.offload.iter().map(ToString::to_string).collect(),
        vmq_weight: spec.settings.vmq_weight,
        iov_weight: spec.settings.iov_weight,
        require_protection: spec.require_protection,
        fallbacks: record.fallbacks.clone(),
        origin: origin(record.origin).to_owned(),
    }
}

pub(super) fn event(event: &Event) -> types::Event {
    let subject = &event.subject;
    let since = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    types::Event {
        number: event.number,
        time: format!("{}.{:06}", since.as_secs(), since.subsec_micros()),
        kind: event.kind.to_owned(),
        host: event.host.to_string(),
        vm: subject.vm.as_deref().map(str::to_owned),
        dir: subject.sa.map(|sa| direction(sa.direction).to_owned()),
        spi: subject.sa.map(|sa| sa.spi.to_string()),
        dst: subject.sa.map(|sa| sa.destination.to_string()),
        reqid: subject.reqid,
        text: event.text.clone(),
    }
}

pub(super) fn finding(finding: Finding) -> types::Finding {
    types::Finding {
        severity: match finding.severity {
            Severity::Fine => "fine",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        }
        .to_owned(),
        about: finding.about,
        text: finding.text,
        remedy: finding.remedy,
    }
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    }
}

const fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Configured => "configured",
        Origin::Requested => "requested",
    }
}

impl fmt::Display for Offload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.offloaded() {
            Ok(mode) => mode.fmt(f),
            Err(_) => f.write_str("software"),
        }
    }
}

fn shown<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn shown_if_any<S: Serializer>(
    value: &Option<&SoftwareReason>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(reason) => serializer.collect_str(reason),
        None => serializer.serialize_none(),
    }
}
