//! How things of the plane look from outside.

use std::time::UNIX_EPOCH;

use vesper_sa::{Direction, Mode, ReplayProtection};
use vesper_verify::xfrm::{PolicyAction, selector_words};

use crate::control::types;
use crate::plane::{Event, Finding, Origin, Plane, PolicyRecord, SaRecord, Severity, VmRecord};

/// An association; `secret` are its words with keys, if they were asked for.
pub(super) fn sa(record: &SaRecord, secret: Option<&str>) -> types::Sa {
    let params = record.sa.params();
    let statistics = record.sa.statistics();
    let (offload, why_not) = match record.offloaded() {
        Ok(mode) => (mode.to_string(), None),
        Err(reason) => ("software".to_owned(), Some(reason.to_string())),
    };
    types::Sa {
        id: record.id.0,
        host: record.host.to_string(),
        vm: record.vm.as_deref().map(str::to_owned),
        dir: direction(params.direction).to_owned(),
        spi: params.spi.to_string(),
        src: params.source.to_string(),
        dst: params.destination.to_string(),
        mode: match params.mode {
            Mode::Transport => "transport".to_owned(),
            Mode::Tunnel => "tunnel".to_owned(),
        },
        reqid: params.reqid,
        suite: record.sa.context().cipher().suite().name.to_owned(),
        state: record.state().to_owned(),
        needs_rekey: record.needs_rekey.as_deref().map(str::to_owned),
        offload,
        why_not,
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
        age_seconds: record.added.elapsed().unwrap_or_default().as_secs(),
        origin: origin(record.origin).to_owned(),
        words: secret.unwrap_or(&record.words).to_owned(),
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
