//! Prometheus metrics, made of one snapshot at each scrape: no counter is kept twice.
//!
//! Labels are host, machine, reason and the like, never an SPI: those come and go without end.

use std::fmt;
use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use vesper_esp::DropReason;
use vesper_offload::{Loss, Losses};

use crate::node::{MachineStatistics, Statistics};
use crate::store::{COMMIT_BUCKETS, StoreStatistics};

/// The media type of the text.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a moment in the text format of OpenMetrics.
pub fn metrics(statistics: &Statistics, store: Option<&StoreStatistics>) -> String {
    let mut registry = Registry::with_prefix("vesper");
    registry.register(
        "build",
        "The program",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    registry.register_collector(Box::new(Snapshot {
        statistics: statistics.clone(),
        store: Mutex::new(store.copied()),
    }));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Snapshot {
    statistics: Statistics,
    store: Mutex<Option<StoreStatistics>>,
}

/// One metric with all its values.
struct Family<'a> {
    encoder: MetricEncoder<'a>,
    is_counter: bool,
}

impl Family<'_> {
    fn value(&mut self, labels: &[(&str, &str)], value: u64) -> fmt::Result {
        let labels = labels.to_vec();
        let encoder = self.encoder.encode_family(&labels)?;
        if self.is_counter {
            ConstCounter::new(value).encode(encoder)
        } else {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
        }
    }

    fn seconds(&mut self, labels: &[(&str, &str)], nanos: u64) -> fmt::Result {
        let labels = labels.to_vec();
        let encoder = self.encoder.encode_family(&labels)?;
        ConstCounter::new(nanos as f64 / 1e9).encode(encoder)
    }
}

fn family<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
    is_counter: bool,
) -> Result<Family<'s>, fmt::Error> {
    let kind = if is_counter {
        MetricType::Counter
    } else {
        MetricType::Gauge
    };
    Ok(Family {
        encoder: encoder.encode_descriptor(name, help, None, kind)?,
        is_counter,
    })
}

type PerMachine = fn(&MachineStatistics) -> u64;

/// Two values of each machine: what it sends, and what it gets.
const BOTH_WAYS: [(&str, &str, PerMachine, PerMachine); 3] = [
    (
        "esp_packets",
        "Packets that ESP was put around (out) or taken off (in)",
        MachineStatistics::sealed,
        MachineStatistics::opened,
    ),
    (
        "vm_packets",
        "Frames from (out) and to (in) the machine",
        |machine| machine.port.received,
        |machine| machine.port.sent,
    ),
    (
        "vm_bytes",
        "Bytes of the frames from (out) and to (in) the machine",
        |machine| machine.port.received_bytes,
        |machine| machine.port.sent_bytes,
    ),
];

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, out, incoming) in BOTH_WAYS {
            let mut family = family(&mut encoder, name, help, true)?;
            for (host, machine) in self.machines() {
                for (dir, count) in [("out", out), ("in", incoming)] {
                    let labels = [("dir", dir), ("host", host), ("vm", &*machine.name)];
                    family.value(&labels, count(machine))?;
                }
            }
        }
        self.esp_bytes(&mut encoder)?;
        self.drops(&mut encoder)?;
        self.associations(&mut encoder)?;
        self.workers(&mut encoder)?;
        let store = self.store.lock().map(|store| *store).unwrap_or_default();
        match store {
            Some(store) => commits(&mut encoder, &store),
            None => Ok(()),
        }
    }
}

impl Snapshot {
    fn machines(&self) -> impl Iterator<Item = (&str, &MachineStatistics)> {
        let nodes = self.statistics.nodes.iter();
        nodes.flat_map(|node| {
            let machines = node.machines.iter();
            machines.map(|machine| (&*node.name, machine))
        })
    }

    fn esp_bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of inner packets that ESP was put around (out) or taken off (in)";
        let mut family = family(encoder, "esp_bytes", help, true)?;
        for node in &self.statistics.nodes {
            for (dir, bytes) in [
                ("out", node.esp.sealed_bytes),
                ("in", node.esp.opened_bytes),
            ] {
                family.value(&[("dir", dir), ("host", &node.name)], bytes)?;
            }
        }
        Ok(())
    }

    fn drops(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Frames lost on their way from or to a machine (empty: nobody knows whose)";
        let mut lost = family(encoder, "drops", help, true)?;
        for (host, machine) in self.machines() {
            losses(&mut lost, host, &machine.name, &machine.losses())?;
            for (reason, count) in [
                ("unusable", machine.unusable),
                ("port", machine.port.dropped),
            ] {
                let labels = [("host", host), ("reason", reason), ("vm", &*machine.name)];
                lost.value(&labels, count)?;
            }
        }
        for node in &self.statistics.nodes {
            losses(&mut lost, &node.name, "", &node.losses)?;
        }
        let help = "Packets that ESP refused";
        let mut refused = family(encoder, "esp_drops", help, true)?;
        for node in &self.statistics.nodes {
            for reason in DropReason::ALL {
                let labels = [("host", &*node.name), ("reason", reason.name())];
                refused.value(&labels, node.esp.drops(*reason))?;
            }
        }
        Ok(())
    }

    fn associations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let values: [(&str, &str, PerMachine); 3] = [
            ("sas", "Security associations that there are", |machine| {
                u64::from(machine.sas.associations)
            }),
            ("sa_limit", "Security associations that there may be", |m| {
                u64::from(m.sas.limit)
            }),
            (
                "offloaded_sas",
                "Security associations in the adapter",
                |machine| u64::from(machine.offloaded.used),
            ),
        ];
        for (name, help, count) in values {
            let mut family = family(encoder, name, help, false)?;
            for (host, machine) in self.machines() {
                let labels = [("host", host), ("vm", &*machine.name)];
                family.value(&labels, count(machine))?;
            }
        }
        Ok(())
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let names: Vec<String> = (0..self.statistics.workers.len())
            .map(|index| index.to_string())
            .collect();
        type Nanos = fn(&crate::node::WorkerStatistics) -> u64;
        let values: [(&str, &str, Nanos); 2] = [
            (
                "worker_busy_seconds",
                "Time in which the worker moved something",
                |worker| worker.busy,
            ),
            (
                "worker_running_seconds",
                "Time since the worker was started",
                |worker| worker.elapsed,
            ),
        ];
        for (name, help, nanos) in values {
            let mut family = family(encoder, name, help, true)?;
            for (index, worker) in names.iter().zip(&self.statistics.workers) {
                let labels = [("worker", index.as_str()), ("roles", &worker.roles)];
                family.seconds(&labels, nanos(worker))?;
            }
        }
        Ok(())
    }
}

fn losses(family: &mut Family<'_>, host: &str, vm: &str, losses: &Losses) -> fmt::Result {
    for reason in Loss::ALL {
        let labels = [("host", host), ("reason", reason.name()), ("vm", vm)];
        family.value(&labels, losses.of(*reason))?;
    }
    Ok(())
}

fn commits(encoder: &mut DescriptorEncoder<'_>, store: &StoreStatistics) -> fmt::Result {
    let failures = encoder.encode_descriptor(
        "store_failures",
        "Changes that could not be made durable",
        None,
        MetricType::Counter,
    )?;
    ConstCounter::new(store.failures).encode(failures)?;
    let bounds = COMMIT_BUCKETS.iter().map(|micros| *micros as f64 / 1e6);
    let buckets: Vec<(f64, u64)> = bounds
        .chain([f64::INFINITY])
        .zip(store.buckets.iter().copied())
        .collect();
    let mut histogram = encoder.encode_descriptor(
        "store_commit_duration_seconds",
        "Time that it took to make a change durable",
        None,
        MetricType::Histogram,
    )?;
    histogram.encode_histogram::<[(&str, &str); 0]>(
        store.busy.as_secs_f64(),
        store.commits,
        &buckets,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{NodeStatistics, PathKind};
    use std::time::Duration;
    use vesper_offload::{MachineCounters, Usage, VmCounters};
    use vesper_sa::{SaUsage, VmId};

    fn machine(name: &str) -> MachineStatistics {
        let mut machine = MachineStatistics {
            vm: VmId(1),
            name: name.into(),
            path: PathKind::Queue,
            port: Default::default(),
            unusable: 4,
            sas: SaUsage {
                associations: 7,
                reserved: 0,
                limit: 512,
            },
            offloaded: Usage {
                used: 6,
                capacity: 100,
            },
            adapter: VmCounters::default(),
            host: MachineCounters::default(),
        };
        machine.adapter.sealed = 30;
        machine.host.sealed = 12;
        machine.port.sent_bytes = 99;
        machine
    }

    #[test]
    fn names_and_values_are_those_of_the_snapshot() {
        let statistics = Statistics {
            nodes: vec![NodeStatistics {
                name: "a".into(),
                machines: vec![machine("web \"1\"")],
                ..NodeStatistics::default()
            }],
            workers: vec![crate::node::WorkerStatistics {
                busy: 1_500_000_000,
                ..Default::default()
            }],
        };
        let store = StoreStatistics {
            commits: 3,
            failures: 1,
            busy: Duration::from_millis(4),
            longest: Duration::from_millis(3),
            buckets: [2, 0, 0, 0, 1, 0, 0, 0, 0],
        };
        let text = metrics(&statistics, Some(&store));
        let vm = r#"host="a",vm="web \"1\"""#;
        for line in [
            format!("vesper_esp_packets_total{{dir=\"out\",{vm}}} 42"),
            format!("vesper_vm_bytes_total{{dir=\"in\",{vm}}} 99"),
            format!("vesper_sas{{{vm}}} 7"),
            format!("vesper_sa_limit{{{vm}}} 512"),
            r#"vesper_drops_total{host="a",reason="unusable",vm="web \"1\""} 4"#.to_owned(),
            r#"vesper_esp_drops_total{host="a",reason="replay"} 0"#.to_owned(),
            r#"vesper_worker_busy_seconds_total{worker="0",roles=""} 1.5"#.to_owned(),
            "vesper_store_failures_total 1".to_owned(),
            "vesper_store_commit_duration_seconds_count 3".to_owned(),
            r#"vesper_store_commit_duration_seconds_bucket{le="0.00025"} 2"#.to_owned(),
            r#"vesper_store_commit_duration_seconds_bucket{le="+Inf"} 3"#.to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains("spi"));
    }
}
