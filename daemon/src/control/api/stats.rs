//! `/v1/stats` and `/v1/ports`: counters.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use vesper_esp::{Counters, DropReason};
use vesper_offload::{Loss, Losses};

use super::Api;
use super::answer::Refused;
use super::body::Named;
use crate::control::types;
use crate::node::{MachineStatistics, NodeStatistics, Statistics};
use crate::plane::Refusal;
use crate::port::PortStatus;

/// The lines of `/proc/net/xfrm_stat` (Linux 6.18), in their order.
pub const XFRM_COUNTERS: [&str; 32] = [
    "XfrmInError",
    "XfrmInBufferError",
    "XfrmInHdrError",
    "XfrmInNoStates",
    "XfrmInStateProtoError",
    "XfrmInStateModeError",
    "XfrmInStateSeqError",
    "XfrmInStateExpired",
    "XfrmInStateMismatch",
    "XfrmInStateInvalid",
    "XfrmInTmplMismatch",
    "XfrmInNoPols",
    "XfrmInPolBlock",
    "XfrmInPolError",
    "XfrmOutError",
    "XfrmOutBundleGenError",
    "XfrmOutBundleCheckError",
    "XfrmOutNoStates",
    "XfrmOutStateProtoError",
    "XfrmOutStateModeError",
    "XfrmOutStateSeqError",
    "XfrmOutStateExpired",
    "XfrmOutPolBlock",
    "XfrmOutPolDead",
    "XfrmOutPolError",
    "XfrmFwdHdrError",
    "XfrmOutStateInvalid",
    "XfrmAcquireError",
    "XfrmOutStateDirError",
    "XfrmInStateDirError",
    "XfrmInIptfsError",
    "XfrmOutNoQueueSpace",
];

/// How things stand.
#[utoipa::path(
    get, path = "/v1/stats", tag = "stats",
    responses((status = 200, body = types::Stats))
)]
pub(super) async fn stats(State(api): State<Api>) -> Json<types::Stats> {
    Json(stats_of(&(api.0.service.statistics)()))
}

/// All ports with their counters.
#[utoipa::path(
    get, path = "/v1/ports", tag = "stats",
    responses((status = 200, body = types::Ports))
)]
pub(super) async fn ports(State(api): State<Api>) -> Json<types::Ports> {
    let statistics = (api.0.service.statistics)();
    let mut ports = Vec::new();
    for node in &statistics.nodes {
        ports.push(port(format!("{}/uplink", node.name), &node.uplink));
        for machine in &node.machines {
            ports.push(port(
                format!("{}/{}", node.name, machine.name),
                &machine.port,
            ));
        }
    }
    Json(types::Ports { ports })
}

/// The counters of one port under the names that `ethtool -S` has for adapters with IPsec.
#[utoipa::path(
    get, path = "/v1/ports/{host}/{name}", tag = "stats",
    params(
        ("host" = String, Path, description = "host"),
        ("name" = String, Path, description = "machine, or uplink")
    ),
    responses((status = 200, body = types::PortCounters), (status = 404, body = types::Error))
)]
pub(super) async fn port_counters(
    State(api): State<Api>,
    Named((host, name)): Named<(String, String)>,
) -> Result<Json<types::PortCounters>, Refused> {
    let statistics = (api.0.service.statistics)();
    let unknown = || Refusal {
        remedy: "GET /v1/ports, or `vesper port list`, tells which there are".to_owned(),
        ..Refusal::not_found("port", format!("{host}/{name}"))
    };
    let node = statistics.nodes.iter().find(|node| *node.name == *host);
    let node = node.ok_or_else(unknown)?;
    let counters = if name == "uplink" {
        uplink_counters(node)
    } else {
        let mut machines = node.machines.iter();
        let machine = machines.find(|machine| *machine.name == *name);
        machine_counters(machine.ok_or_else(unknown)?)
    };
    Ok(Json(types::PortCounters {
        name: format!("{host}/{name}"),
        counters,
    }))
}

/// A snapshot as it looks from outside.
pub fn stats_of(statistics: &Statistics) -> types::Stats {
    let workers = statistics.workers.iter();
    types::Stats {
        hosts: statistics.nodes.iter().map(host).collect(),
        workers: workers
            .map(|worker| types::WorkerStats {
                roles: worker.roles.to_string(),
                cpu: worker.cpu,
                busy_nanos: worker.busy,
                elapsed_nanos: worker.elapsed,
                sleeps: worker.sleeps,
            })
            .collect(),
        xfrm: xfrm(statistics),
    }
}

fn host(node: &NodeStatistics) -> types::HostStats {
    types::HostStats {
        name: node.name.to_string(),
        at_nanos: node.at.as_nanos(),
        sealed_packets: node.esp.sealed_packets,
        sealed_bytes: node.esp.sealed_bytes,
        opened_packets: node.esp.opened_packets,
        opened_bytes: node.esp.opened_bytes,
        esp_drops: drops(&node.esp),
        losses: losses(&node.losses),
        vms: node.machines.iter().map(machine).collect(),
    }
}

fn machine(machine: &MachineStatistics) -> types::VmStats {
    let mut lost = losses(&machine.losses());
    for (name, count) in [
        ("unusable", machine.unusable),
        ("port", machine.port.dropped),
    ] {
        if count > 0 {
            lost.insert(name.to_owned(), count);
        }
    }
    types::VmStats {
        name: machine.name.to_string(),
        path: machine.path.to_string(),
        tx_packets: machine.port.received,
        tx_bytes: machine.port.received_bytes,
        rx_packets: machine.port.sent,
        rx_bytes: machine.port.sent_bytes,
        sealed: machine.sealed(),
        opened: machine.opened(),
        sas: machine.sas.associations + machine.sas.reserved,
        sa_limit: machine.sas.limit,
        losses: lost,
    }
}

/// Every drop under the name that Linux has for it.
fn xfrm(statistics: &Statistics) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for node in &statistics.nodes {
        for reason in DropReason::ALL {
            *counts.entry(reason.xfrm()).or_default() += node.esp.drops(*reason);
        }
        for machine in &node.machines {
            let (sent, received) = (
                &machine.adapter.send_losses,
                &machine.adapter.receive_losses,
            );
            // Software decides about what is sent; it loses what comes in by `no_sa` of ESP.
            let software = &machine.host.losses;
            for (name, count) in [
                (
                    "XfrmOutPolBlock",
                    sent.of(Loss::Policy) + software.of(Loss::Policy),
                ),
                (
                    "XfrmOutNoStates",
                    sent.of(Loss::NoSa) + software.of(Loss::NoSa),
                ),
                ("XfrmInPolBlock", received.of(Loss::Policy)),
                ("XfrmInNoStates", received.of(Loss::NoSa)),
            ] {
                *counts.entry(name).or_default() += count;
            }
        }
    }
    XFRM_COUNTERS
        .iter()
        .map(|name| ((*name).to_owned(), counts.get(name).copied().unwrap_or(0)))
        .collect()
}

fn drops(counters: &Counters) -> BTreeMap<String, u64> {
    let reasons = DropReason::ALL.iter();
    reasons
        .map(|reason| (reason.name().to_owned(), counters.drops(*reason)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn losses(losses: &Losses) -> BTreeMap<String, u64> {
    let reasons = Loss::ALL.iter();
    reasons
        .map(|loss| (loss.name().to_owned(), losses.of(*loss)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn port(name: String, status: &PortStatus) -> types::Port {
    types::Port {
        name,
        up: status.up,
        mtu: status.mtu,
        mac: status.mac.map(|mac| mac.to_string()),
        rx_packets: status.received,
        rx_bytes: status.received_bytes,
        tx_packets: status.sent,
        tx_bytes: status.sent_bytes,
        rx_errors: status.malformed,
        tx_dropped: status.dropped,
    }
}

/// Names and values.
type Rows = Vec<(String, u64)>;

fn link_counters(status: &PortStatus) -> Rows {
    named([
        ("rx_packets", status.received),
        ("rx_bytes", status.received_bytes),
        ("tx_packets", status.sent),
        ("tx_bytes", status.sent_bytes),
        ("rx_errors", status.malformed),
        ("tx_dropped", status.dropped),
    ])
}

fn uplink_counters(node: &NodeStatistics) -> Rows {
    let esp = &node.esp;
    let mut counters = link_counters(&node.uplink);
    counters.extend(named([
        ("ipsec_rx_pkts", esp.opened_packets),
        ("ipsec_rx_bytes", esp.opened_bytes),
        ("ipsec_rx_drop", esp.dropped()),
        ("ipsec_rx_drop_sadb_miss", esp.drops(DropReason::NoSa)),
        ("ipsec_rx_drop_auth", esp.drops(DropReason::Icv)),
        ("ipsec_rx_drop_replay", esp.drops(DropReason::Replay)),
        ("ipsec_tx_pkts", esp.sealed_packets),
        ("ipsec_tx_bytes", esp.sealed_bytes),
        ("ipsec_tx_drop_no_state", esp.drops(DropReason::OutNoSa)),
        ("rx_dropped", node.losses.total()),
    ]));
    counters
}

fn machine_counters(machine: &MachineStatistics) -> Rows {
    let losses = machine.losses();
    let mut counters = link_counters(&machine.port);
    counters.extend(named([
        ("ipsec_rx_pkts", machine.opened()),
        ("ipsec_tx_pkts", machine.sealed()),
        ("ipsec_tx_segments", machine.adapter.segments),
        ("ipsec_tx_to_host", machine.adapter.to_host),
        ("rx_copies", machine.host.copies),
        ("unusable", machine.unusable),
    ]));
    let drop = |loss: &Loss| (format!("drop_{}", loss.name()), losses.of(*loss));
    counters.extend(Loss::ALL.iter().map(drop));
    counters
}

fn named<const N: usize>(rows: [(&str, u64); N]) -> Rows {
    rows.map(|(name, value)| (name.to_owned(), value)).to_vec()
}
