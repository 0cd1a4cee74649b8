//! The live table.

use std::fmt::Write as _;
use std::io::{self, Write};

use rustix::termios::{Winsize, tcgetwinsize};

use crate::node::{MachineStatistics, NodeStatistics, Statistics, WorkerStatistics};

/// Shows rates: redrawn in place on a terminal, one line per machine elsewhere.
#[derive(Debug)]
pub(super) struct Table {
    is_terminal: bool,
    /// Lines that are on the terminal.
    lines: usize,
    before: Option<Statistics>,
}

/// Columns of a line that is not made for a terminal, or for one that does not tell.
const WIDE: usize = 100;

/// Columns below which the numbers stand closer.
const NARROW: usize = 96;

/// How wide the columns are.
#[derive(Clone, Copy, Debug)]
struct Widths {
    name: usize,
    gbits: usize,
}

impl Widths {
    /// Names have the room that the numbers leave, if they are that long.
    fn new(columns: usize, longest: usize) -> Self {
        let (least, gbits) = match columns < NARROW {
            true => (20, 6),
            false => (28, 8),
        };
        // All other columns with the spaces between them, and a last one that stays free.
        let others = 44 + 3 * gbits;
        Self {
            name: longest.clamp(least, columns.saturating_sub(others).max(least)),
            gbits,
        }
    }
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
        let size = self.is_terminal.then(|| tcgetwinsize(io::stdout()).ok());
        let text = match size.flatten() {
            Some(Winsize {
                ws_col: columns @ 1..,
                ws_row: rows @ 1..,
                ..
            }) => {
                let columns = usize::from(columns);
                fit(&render(&before, now, columns), columns, usize::from(rows))
            }
            _ => render(&before, now, WIDE),
        };
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

/// What fits, so that no line breaks and the whole can be drawn over: lines end at the last column
/// but one, and the machines that have no line any more are counted in the last.
fn fit(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    let shown = match lines.len() <= room {
        true => lines.len(),
        false => room - 1,
    };
    let mut fitting = String::new();
    for line in lines.iter().take(shown) {
        fitting.extend(line.chars().take(columns.saturating_sub(1)));
        fitting.push('\n');
    }
    if shown < lines.len() {
        let more = format!("and {} lines more: enlarge the window", lines.len() - shown);
        fitting.extend(more.chars().take(columns.saturating_sub(1)));
        fitting.push('\n');
    }
    fitting
}

fn render(before: &Statistics, now: &Statistics, columns: usize) -> String {
    let mut text = String::new();
    let names = now.nodes.iter().flat_map(|node| {
        let vms = node.machines.iter();
        vms.map(|machine| node.name.chars().count() + 1 + machine.name.chars().count())
    });
    let widths = Widths::new(columns, names.max().unwrap_or(0));
    row(
        &mut text,
        widths,
        [
            "machine", "path", "out Mpps", "Gbit/s", "in Mpps", "Gbit/s", "SAs", "drops",
        ],
    );
    for (index, node) in now.nodes.iter().enumerate() {
        let old = before.nodes.get(index);
        for machine in &node.machines {
            let old = old.and_then(|node| Some((find(node, machine)?, node)));
            machine_line(&mut text, widths, node, machine, old);
        }
    }
    for (index, worker) in now.workers.iter().enumerate() {
        worker_line(&mut text, worker, before.workers.get(index));
    }
    text
}

/// One line; names that are too long are cut.
fn row(text: &mut String, widths: Widths, cells: [&str; 8]) {
    let [
        name,
        path,
        out_packets,
        out_bits,
        in_packets,
        in_bits,
        sas,
        drops,
    ] = cells;
    let Widths {
        name: name_width,
        gbits: width,
    } = widths;
    let cut: String = match name.chars().count() > name_width {
        true => name.chars().take(name_width - 1).chain(['…']).collect(),
        false => name.to_owned(),
    };
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{cut:<name_width$} {path:<9} {out_packets:>8} {out_bits:>width$} {in_packets:>8} \
         {in_bits:>width$} {sas:>8} {drops:>more$}",
        more = width + 1,
    );
}

fn machine_line(
    text: &mut String,
    widths: Widths,
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
    let three = |rate: f64| format!("{rate:.3}");
    row(
        text,
        widths,
        [
            &format!("{}/{}", node.name, machine.name),
            &machine.path.to_string(),
            &three(rate(|machine| machine.port.received, 1e6)),
            &three(rate(|machine| machine.port.received_bytes, 1e9 / 8.0)),
            &three(rate(|machine| machine.port.sent, 1e6)),
            &three(rate(|machine| machine.port.sent_bytes, 1e9 / 8.0)),
            &format!("{}/{}", machine.sas.associations, machine.sas.limit),
            &machine.lost().to_string(),
        ],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wider_or_higher_than_the_terminal() {
        let mut text = String::new();
        let name = "a/a-machine-with-a-name-of-64-letters";
        for columns in [80, 100, 120] {
            row(
                &mut text,
                Widths::new(columns, name.len()),
                [
                    name,
                    "synthetic",
                    "12.345",
                    "99.999",
                    "12.345",
                    "99.999",
                    "512/512",
                    "9999999",
                ],
            );
        }
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths[0] < 80 && widths[1] < 100, "{text}");
        assert!(
            widths[2] < 120 && text.lines().nth(2).unwrap().starts_with(name),
            "{text}"
        );
        assert!(
            text.starts_with("a/a-machine-with-a-… synthetic   12.345 99.999"),
            "{text}"
        );
        let many: String = (0..30).map(|line| format!("line {line}\n")).collect();
        let fitted = fit(&many, 20, 24);
        assert_eq!(fitted.lines().count(), 23);
        assert!(fitted.lines().all(|line| line.chars().count() < 20));
        assert_eq!(fitted.lines().last(), Some("and 8 lines more: e"));
        assert_eq!(fit("one\ntwo\n", 80, 24), "one\ntwo\n");
    }
}
