//! The program `vesperd`.

mod desired;
mod housekeeping;
mod reload;
mod running;
mod summary;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, DEFAULT, LogFormat, Period, PortConfig};
use crate::ops::{Confinement, ServiceManager};
use running::Running;
use summary::Summary;
use table::Table;

/// How often the live table is drawn.
const REFRESH: Duration = Duration::from_secs(1);

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
            // There is nobody left to tell if this fails.
            let _ = writeln!(io::stderr(), "vesperd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if arguments.print_default {
        say(DEFAULT)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = &arguments.check {
        let config = Config::read(file)?;
        let vms: usize = config.hosts.iter().map(|host| host.vms.len()).sum();
        say(&format!(
            "{}: good; hosts: {}, machines: {vms}\n",
            file.display(),
            config.hosts.len()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = match &arguments.config {
        Some(file) => Config::read(file)?,
        None => Config::embedded(),
    };
    log(&config)?;
    // A daemon with a state has keys that somebody may want.
    let is_confined = config.daemon.state.is_some();
    if is_confined {
        let Confinement {
            locked,
            capabilities,
        } = Confinement::begin(config.control.gives_groups())?;
        let left = capabilities.join(" ");
        tracing::info!(memory_locked = locked, capabilities = left, "confined");
    }
    let is_closed = config
        .hosts
        .iter()
        .all(|host| matches!(*host.uplink, PortConfig::Cable(_)));
    let signals = signals()?;
    let running = Running::start(config, arguments.config.as_deref())?;
    if is_confined {
        Confinement::complete()?;
    }
    let mut view = View::new(arguments.quiet);
    if let Some(address) = running.status_address() {
        view.show(|out, _| writeln!(out, "status page: http://{address}/"));
    }
    let begin = Instant::now();
    let start = running.statistics();
    watch(arguments, &running, begin, &signals, &mut view);
    let end = running.statistics();
    let duration = begin.elapsed();
    let settled = running.stop(is_closed)?;
    let summary = Summary::new(&start, &end, duration).settled(&settled, is_closed);
    say(&summary.to_string())?;
    Ok(match summary.is_accounted_for() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Shows how things stand until time is up or a signal comes.
fn watch(
    arguments: &Arguments,
    running: &Running,
    begin: Instant,
    signals: &Receiver<Signal>,
    view: &mut View,
) {
    let until = arguments.duration.map(|duration| begin + duration.0);
    let mut next = begin + REFRESH;
    loop {
        let wait = until.map_or(next, |until| until.min(next));
        match signals.recv_deadline(wait) {
            Ok(Signal::End) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Signal::Reload) => {
                ServiceManager.reloading();
                running.reload();
                ServiceManager.ready();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if until.is_some_and(|until| now >= until) {
            return;
        }
        if now >= next {
            next = now + REFRESH;
            view.show(|out, table| table.draw(out, &running.statistics()));
        }
    }
}

/// Standard output while packets pass, as long as there is somebody who reads it.
struct View(Option<Table>);

impl View {
    fn new(is_quiet: bool) -> Self {
        Self((!is_quiet).then(|| Table::new(io::stdout().is_terminal())))
    }

    /// Shows something. A closed pipe or a full disk ends the view, and not what the machines
    /// rely on.
    fn show(&mut self, what: impl FnOnce(&mut io::StdoutLock<'_>, &mut Table) -> io::Result<()>) {
        let Some(table) = &mut self.0 else { return };
        if let Err(error) = what(&mut io::stdout().lock(), table) {
            tracing::warn!("nothing more is shown: standard output: {error}");
            self.0 = None;
        }
    }
}

/// Says something on standard output. Who closed the pipe has seen enough.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(io::Error::new(
            error.kind(),
            format!("standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// What the system asks for.
#[derive(Clone, Copy, Debug)]
enum Signal {
    /// SIGINT or SIGTERM.
    End,
    /// SIGHUP.
    Reload,
}

/// Where signals arrive.
fn signals() -> io::Result<Receiver<Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    drop(guard);
    let (sender, receiver) = unbounded();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    let signal = tokio::select! {
                        _ = interrupt.recv() => Signal::End,
                        _ = terminate.recv() => Signal::End,
                        _ = hang_up.recv() => Signal::Reload,
                    };
                    if sender.send(signal).is_err() {
                        return;
                    }
                }
            });
        })?;
    Ok(receiver)
}

/// Logs to the standard error output, as the configuration says; `VESPER_LOG` says it
/// differently for one process.
fn log(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let directives = match std::env::var("VESPER_LOG") {
        Ok(directives) => directives,
        Err(_) => config
            .daemon
            .log
            .clone()
            .unwrap_or_else(|| "info".to_owned()),
    };
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| format!("log = \"{directives}\": {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(|| Unfailing(io::stderr()));
    match config.daemon.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// The error output as a place for logs: a line that can not be written is lost, and nothing
/// else. (The subscriber would tell of the failure on the error output, and panic.)
struct Unfailing(io::Stderr);

impl Write for Unfailing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
