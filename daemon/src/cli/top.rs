//! `vesper top`: a live view.

use std::io::{self, IsTerminal};
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Gauge, Row, Table};

use super::answer::Stop;
use super::table;
use crate::control::client::Client;
use crate::control::types::{HostStats, Stats, VmStats, WorkerStats};

/// How often it is drawn anew.
const REFRESH: Duration = Duration::from_secs(1);

/// Two snapshots, the difference of which are the rates.
struct View {
    before: Stats,
    now: Stats,
}

/// What one machine does in a second.
struct Rates {
    name: String,
    path: String,
    /// Millions of packets a second, both ways.
    mpps: f64,
    /// Gbit/s, both ways.
    gbits: f64,
    sas: String,
    lost: u64,
    losing: bool,
}

pub(super) fn run(client: &Client) -> Result<(), Stop> {
    if !io::stdout().is_terminal() {
        return Err(Stop::Usage(
            "top needs a terminal; use `vesper stat --json` in scripts".to_owned(),
        ));
    }
    let now: Stats = client.get("/v1/stats")?;
    let mut view = View {
        before: now.clone(),
        now,
    };
    let mut terminal = ratatui::try_init()?;
    let done = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &view)) {
            break Err(error.into());
        }
        match is_over() {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error.into()),
        }
        match client.get("/v1/stats") {
            Ok(now) => {
                view = View {
                    before: std::mem::take(&mut view.now),
                    now,
                };
            }
            Err(error) => break Err(error.into()),
        }
    };
    ratatui::restore();
    done
}

/// Waits until it is time to draw anew; true if somebody wants to leave.
fn is_over() -> io::Result<bool> {
    if !event::poll(REFRESH)? {
        return Ok(false);
    }
    Ok(match event::read()? {
        Event::Key(key) => {
            matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                || key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL)
        }
        _ => false,
    })
}

fn draw(frame: &mut Frame<'_>, view: &View) {
    let workers = u16::try_from(view.now.workers.len()).unwrap_or(u16::MAX);
    let [head, machines, load, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(workers.saturating_add(2)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::from(title(view)).bold(), head);

    let all = rates(view);
    // Two lines are the border, one is the heading.
    let room = usize::from(machines.height).saturating_sub(3);
    let name = match all.len() > room {
        true => format!("machines: {room} of {}; enlarge the window", all.len()),
        false => "machines".to_owned(),
    };
    // The columns of numbers and the border take the rest.
    let longest = all.iter().map(|rates| rates.name.chars().count()).max();
    let width = (longest.unwrap_or(0).max(16)).min(usize::from(machines.width).saturating_sub(58));
    let rows = all.into_iter().map(|rates| {
        let style = match rates.losing {
            true => Style::new().fg(Color::Yellow),
            false => Style::new(),
        };
        Row::new([
            Cell::from(table::cut(&rates.name, width)),
            Cell::from(rates.path),
            Cell::from(format!("{:>8.3}", rates.mpps)),
            Cell::from(format!("{:>8.3}", rates.gbits)),
            Cell::from(format!("{:>9}", rates.sas)),
            Cell::from(format!("{:>12}", rates.lost)),
        ])
        .style(style)
    });
    let heading = Row::new([
        "VM",
        "PATH",
        "    Mpps",
        "  Gbit/s",
        "      SAs",
        "        LOST",
    ]);
    let widths = [
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(13),
    ];
    let table = Table::new(rows, widths)
        .header(heading.bold())
        .block(Block::bordered().title(name));
    frame.render_widget(table, machines);

    let block = Block::bordered().title("workers");
    let inside = block.inner(load);
    frame.render_widget(block, load);
    let bars = Layout::vertical(vec![Constraint::Length(1); view.now.workers.len()]).split(inside);
    for (index, (worker, bar)) in view.now.workers.iter().zip(bars.iter()).enumerate() {
        let busy = busy(view.before.workers.get(index), worker);
        let cpu = worker
            .cpu
            .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
        let gauge = Gauge::default()
            .ratio(busy)
            .label(format!("CPU {cpu} {:3.0} % {}", busy * 100.0, worker.roles))
            .gauge_style(Style::new().fg(Color::Green));
        frame.render_widget(gauge, *bar);
    }
    frame.render_widget(Line::from("q ends").dim(), foot);
}

fn title(view: &View) -> String {
    let sum =
        |stats: &Stats, of: fn(&HostStats) -> u64| -> u64 { stats.hosts.iter().map(of).sum() };
    let drops = |host: &HostStats| -> u64 { host.esp_drops.values().sum() };
    format!(
        "vesper: {} hosts, {} packets sealed, {} opened, {} dropped by ESP",
        view.now.hosts.len(),
        sum(&view.now, |host| host.sealed_packets),
        sum(&view.now, |host| host.opened_packets),
        sum(&view.now, drops)
    )
}

fn rates(view: &View) -> Vec<Rates> {
    let mut all = Vec::new();
    for host in &view.now.hosts {
        let before = view.before.hosts.iter().find(|old| old.name == host.name);
        let nanos = before.map_or(0, |before| host.at_nanos.saturating_sub(before.at_nanos));
        for vm in &host.vms {
            let old = before.and_then(|before| before.vms.iter().find(|old| old.name == vm.name));
            all.push(rate(&host.name, vm, old, nanos));
        }
    }
    all
}

fn rate(host: &str, vm: &VmStats, before: Option<&VmStats>, nanos: u64) -> Rates {
    let grown = |of: fn(&VmStats) -> u64| {
        before.map_or(0, |before| of(vm).saturating_sub(of(before))) as f64
    };
    let seconds = nanos as f64 / 1e9;
    let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let lost = |vm: &VmStats| vm.losses.values().sum::<u64>();
    Rates {
        name: format!("{host}/{}", vm.name),
        path: vm.path.clone(),
        mpps: per_second(grown(|vm| vm.tx_packets + vm.rx_packets)) / 1e6,
        gbits: per_second(grown(|vm| vm.tx_bytes + vm.rx_bytes)) * 8.0 / 1e9,
        sas: format!("{}/{}", vm.sas, vm.sa_limit),
        lost: lost(vm),
        losing: before.is_some_and(|before| lost(vm) > lost(before)),
    }
}

/// The share of the time since the last snapshot in which a worker moved something.
fn busy(before: Option<&WorkerStats>, now: &WorkerStats) -> f64 {
    let (busy, elapsed) = before.map_or((now.busy_nanos, now.elapsed_nanos), |before| {
        (
            now.busy_nanos.saturating_sub(before.busy_nanos),
            now.elapsed_nanos.saturating_sub(before.elapsed_nanos),
        )
    });
    (busy as f64 / elapsed.max(1) as f64).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn stats(packets: u64, at_nanos: u64, busy_nanos: u64) -> Stats {
        Stats {
            hosts: vec![HostStats {
                name: "a".to_owned(),
                at_nanos,
                sealed_packets: packets,
                vms: vec![VmStats {
                    name: "web1".to_owned(),
                    path: "queue".to_owned(),
                    tx_packets: packets,
                    tx_bytes: packets * 1000,
                    sas: 2,
                    sa_limit: 512,
                    ..VmStats::default()
                }],
                ..HostStats::default()
            }],
            workers: vec![WorkerStats {
                roles: "a: host".to_owned(),
                cpu: Some(1),
                busy_nanos,
                elapsed_nanos: at_nanos,
                sleeps: 0,
            }],
            xfrm: Vec::new(),
        }
    }

    #[test]
    fn rates_are_those_between_two_snapshots() {
        let view = View {
            before: stats(1_000_000, 1_000_000_000, 0),
            now: stats(3_000_000, 2_000_000_000, 500_000_000),
        };
        let mut terminal = Terminal::new(TestBackend::new(90, 12)).unwrap();
        terminal.draw(|frame| draw(frame, &view)).unwrap();
        let screen = terminal.backend().to_string();
        // 2 million packets of 1,000 bytes in a second.
        for expected in [
            "a/web1",
            "   2.000",
            "  16.000",
            "2/512",
            "CPU 1  50 % a: host",
            "3000000 packets sealed",
        ] {
            assert!(screen.contains(expected), "{expected}:\n{screen}");
        }
    }
}
