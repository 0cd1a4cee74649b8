//! The program `vesperd`.

mod install;
mod summary;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::config::{Config, DEFAULT, Period};
use crate::node::{Nodes, Statistics};
use crate::pair;
use summary::Summary;
use table::Table;

/// How often the live table is drawn.
const REFRESH: Duration = Duration::from_secs(1);

/// How long what is on its way may take to arrive when vesperd ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Encrypts the traffic of virtual machines (IPsec ESP).
///
/// Without a configuration: two hosts back to back in this process, with made-up traffic
/// through AES-256-GCM tunnels between three machines on each.
#[derive(Debug, Parser)]
#[command(name = "vesperd", version)]
pub struct Arguments {
    /// The configuration; without it the embedded one, see --print-default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Checks a configuration and ends.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "print_default"])]
    check: Option<PathBuf>,

    /// Prints the embedded configuration, with explanations.
    #[arg(long)]
    print_default: bool,

    /// Ends after this time, such as 10s or 5m.
    #[arg(long = "for", value_name = "TIME")]
    duration: Option<Period>,

    /// Prints nothing while it runs.
    #[arg(long)]
    quiet: bool,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vesperd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if arguments.print_default {
        io::stdout().write_all(DEFAULT.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = &arguments.check {
        let config = Config::read(file)?;
        let vms: usize = config.hosts.iter().map(|host| host.vms.len()).sum();
        println!(
            "{}: good; hosts: {}, machines: {vms}",
            file.display(),
            config.hosts.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let config = match &arguments.config {
        Some(file) => Config::read(file)?,
        None => Config::embedded(),
    };
    let ended = signals()?;
    let nodes = Nodes::start(&config)?;
    for vm in pair::keys(&config)? {
        install::pair(&nodes, &config, &vm)?;
    }
    install::configured(&nodes, &config)?;
    nodes.release()?;

    let begin = Instant::now();
    let start = nodes.statistics();
    watch(arguments, &nodes, begin, &ended)?;
    let end = nodes.statistics();
    let summary = Summary::new(&start, &end, begin.elapsed());
    nodes.hold()?;
    let settled = drained(&nodes);
    let statistics = if settled {
        nodes.stop()
    } else {
        nodes.statistics()
    };
    let summary = summary.settled(&statistics);
    print!("{summary}");
    Ok(match summary.is_accounted_for() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Shows how things stand until time is up or a signal comes.
fn watch(
    arguments: &Arguments,
    nodes: &Nodes,
    begin: Instant,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut table = Table::new(io::stdout().is_terminal());
    let until = arguments.duration.map(|duration| begin + duration.0);
    let mut next = begin + REFRESH;
    while !ended.load(Ordering::Relaxed) {
        let now = Instant::now();
        if until.is_some_and(|until| now >= until) {
            break;
        }
        if now >= next {
            next += REFRESH;
            if !arguments.quiet {
                table.draw(&mut io::stdout().lock(), &nodes.statistics())?;
            }
        }
        let wait = until.map_or(next, |until| until.min(next));
        thread::park_timeout(wait.saturating_duration_since(now));
    }
    Ok(())
}

/// Waits until nothing is on its way any more; false if something stays on its way.
fn drained(nodes: &Nodes) -> bool {
    let deadline = Instant::now() + DRAIN;
    let in_flight = |statistics: &Statistics| -> Vec<i64> {
        let nodes = statistics.nodes.iter();
        nodes.map(|node| node.in_flight()).collect()
    };
    while Instant::now() < deadline {
        let now = in_flight(&nodes.statistics());
        if now.iter().all(|count| *count == 0) {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Whether SIGINT or SIGTERM came; wakes this thread.
fn signals() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let waiting = thread::current();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let flag = Arc::clone(&ended);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
            waiting.unpark();
        })?;
    Ok(ended)
}
