//! What is said at the end: where every packet has gone.

use std::fmt;
use std::time::Duration;

use vesper_esp::DropReason;
use vesper_offload::Loss;

use super::table::load;
use crate::node::Statistics;

/// What has happened, and whether every packet is accounted for.
#[derive(Debug)]
pub(super) struct Summary {
    duration: Duration,
    /// Packets and bits that machines got in this time.
    packets: u64,
    bits: u64,
    loads: Vec<(String, f64)>,
    is_closed: bool,
    end: Statistics,
}

impl Summary {
    /// Rates between two moments.
    pub(super) fn new(start: &Statistics, end: &Statistics, duration: Duration) -> Self {
        let sum = |statistics: &Statistics, bytes: bool| -> u64 {
            let nodes = statistics.nodes.iter();
            nodes
                .flat_map(|node| &node.machines)
                .map(|machine| match bytes {
                    true => machine.port.sent_bytes,
                    false => machine.port.sent,
                })
                .sum()
        };
        let workers = end.workers.iter().enumerate();
        Self {
            duration,
            packets: sum(end, false).saturating_sub(sum(start, false)),
            bits: sum(end, true).saturating_sub(sum(start, true)) * 8,
            loads: workers
                .map(|(index, worker)| {
                    let load = load(worker, start.workers.get(index));
                    (worker.roles.to_string(), load)
                })
                .collect(),
            is_closed: false,
            end: Statistics::default(),
        }
    }

    /// Where everything was when nothing moved any more. `is_closed`: all hosts are joined by
    /// cables, so that what one sends another one gets.
    pub(super) fn settled(self, end: &Statistics, is_closed: bool) -> Self {
        Self {
            end: end.clone(),
            is_closed,
            ..self
        }
    }

    /// Nothing is on its way, nothing is falsified, and the hosts agree about what went
    /// between them.
    pub(super) fn is_accounted_for(&self) -> bool {
        self.in_flight() == 0 && self.wrong() == 0 && self.wire_difference() == 0
    }

    fn in_flight(&self) -> i64 {
        let nodes = self.end.nodes.iter();
        nodes.map(|node| node.in_flight().abs()).sum()
    }

    /// Packets that were not what was sent.
    fn wrong(&self) -> u64 {
        let nodes = self.end.nodes.iter();
        let machines = nodes.flat_map(|node| &node.machines);
        machines.map(|machine| machine.port.malformed).sum()
    }

    /// What hosts sent less what hosts received, where all are joined by cables.
    fn wire_difference(&self) -> i64 {
        match self.is_closed {
            true => self.end.wire_difference(),
            false => 0,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.duration.as_secs_f64().max(1e-9);
        writeln!(
            f,
            "\n{seconds:.1} s, {:.3} Mpps, {:.3} Gbit/s through the tunnels",
            self.packets as f64 / seconds / 1e6,
            self.bits as f64 / seconds / 1e9
        )?;
        for (roles, load) in &self.loads {
            writeln!(f, "load {:>5.1} %  {roles}", load * 100.0)?;
        }
        writeln!(
            f,
            "{:<20} {:<9} {:>12} {:>12} {:>12} {:>12} {:>8}",
            "machine", "path", "sent", "sealed", "opened", "received", "drops"
        )?;
        for node in &self.end.nodes {
            for machine in &node.machines {
                writeln!(
                    f,
                    "{:<20} {:<9} {:>12} {:>12} {:>12} {:>12} {:>8}",
                    format!("{}/{}", node.name, machine.name),
                    machine.path,
                    machine.port.received,
                    machine.sealed(),
                    machine.opened(),
                    machine.port.sent,
                    machine.lost()
                )?;
            }
        }
        for node in &self.end.nodes {
            let mut losses = node.losses;
            for machine in &node.machines {
                losses.merge(&machine.losses());
            }
            for loss in Loss::ALL.iter().filter(|loss| losses.of(**loss) > 0) {
                writeln!(
                    f,
                    "host {}: {} dropped: {loss}",
                    node.name,
                    losses.of(*loss)
                )?;
            }
            for reason in DropReason::ALL {
                let count = node.esp.drops(*reason);
                if count > 0 {
                    writeln!(f, "host {}: {count} dropped by ESP: {reason}", node.name)?;
                }
            }
        }
        match self.is_accounted_for() {
            true => writeln!(f, "every packet is accounted for"),
            false => writeln!(
                f,
                "NOT accounted for: {} on their way for more than 2 s, {} not what was sent, {} \
                 more sent than received between the hosts",
                self.in_flight(),
                self.wrong(),
                self.wire_difference()
            ),
        }
    }
}
