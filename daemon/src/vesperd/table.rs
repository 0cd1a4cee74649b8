//! The live table.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::node::{MachineStatistics, NodeStatistics, Statistics, WorkerStatistics};

/// Shows rates: redrawn in place on a terminal, one line per machine elsewhere.
#[derive(Debug)]
pub(super) struct Table {
    is_terminal: bool,
    /// Lines that are on the terminal.
    lines: usize,
    before: Option<Statistics>,
}

impl Table {
    pub(super) const fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            lines: 0,
            before: None,
        }
    }

    /// Shows what has changed since the last call.
    pub(super) fn draw(&mut self, out: &mut impl Write, now: &Statistics) -> io::Result<()> {
        let before = self.before.replace(now.clone()).unwrap_or_default();
        let text = render(&before, now);
        if self.is_terminal {
            if self.lines > 0 {
                // To where the table begins, and everything below it away.
                write!(out, "\x1b[{}A\x1b[J", self.lines)?;
            }
            self.lines = text.lines().count();
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

fn render(before: &Statistics, now: &Statistics) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{:<20} {:<9} {:>10} {:>10} {:>10} {:>10} {:>11} {:>10}",
        "machine", "path", "out Mpps", "out Gbit/s", "in Mpps", "in Gbit/s", "SAs", "drops"
    );
    for (index, node) in now.nodes.iter().enumerate() {
        let old = before.nodes.get(index);
        for machine in &node.machines {
            let old = old.and_then(|node| Some((find(node, machine)?, node)));
            machine_line(&mut text, node, machine, old);
        }
    }
    for (index, worker) in now.workers.iter().enumerate() {
        worker_line(&mut text, worker, before.workers.get(index));
    }
    text
}

fn machine_line(
    text: &mut String,
    node: &NodeStatistics,
    machine: &MachineStatistics,
    old: Option<(&MachineStatistics, &NodeStatistics)>,
) {
    let since = old.map_or(0, |(_, node)| node.at.as_nanos());
    let seconds = node.at.as_nanos().saturating_sub(since) as f64 / 1e9;
    let before = old.map(|(machine, _)| machine);
    let rate = |count: fn(&MachineStatistics) -> u64, unit: f64| {
        let change = count(machine) - before.map_or(0, count);
        if seconds > 0.0 {
            change as f64 / seconds / unit
        } else {
            0.0
        }
    };
    let _ = writeln!(
        text,
        "{:<20} {:<9} {:>10.3} {:>10.3} {:>10.3} {:>10.3} {:>11} {:>10}",
        format!("{}/{}", node.name, machine.name),
        machine.path,
        rate(|machine| machine.port.received, 1e6),
        rate(|machine| machine.port.received_bytes, 1e9 / 8.0),
        rate(|machine| machine.port.sent, 1e6),
        rate(|machine| machine.port.sent_bytes, 1e9 / 8.0),
        format!("{}/{}", machine.sas.associations, machine.sas.limit),
        machine.lost(),
    );
}

fn worker_line(text: &mut String, now: &WorkerStatistics, old: Option<&WorkerStatistics>) {
    let cpu = now
        .cpu
        .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
    let _ = writeln!(
        text,
        "cpu {cpu:<4} load {:>5.1} %   {}",
        load(now, old) * 100.0,
        now.roles
    );
}

/// The share of its time in which a worker moved something.
pub(super) fn load(now: &WorkerStatistics, before: Option<&WorkerStatistics>) -> f64 {
    let (busy, elapsed) = before.map_or((0, 0), |before| (before.busy, before.elapsed));
    let elapsed = now.elapsed.saturating_sub(elapsed) as f64;
    if elapsed > 0.0 {
        now.busy.saturating_sub(busy) as f64 / elapsed
    } else {
        0.0
    }
}

fn find<'a>(
    node: &'a NodeStatistics,
    machine: &MachineStatistics,
) -> Option<&'a MachineStatistics> {
    node.machines.iter().find(|other| other.vm == machine.vm)
}
