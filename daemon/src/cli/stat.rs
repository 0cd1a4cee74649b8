//! `vesper stat` and `vesper port`.

use std::io::Write;

use clap::{Args, Subcommand};

use super::Format;
use super::answer::{Stop, json};
use super::table::{self, grouped};
use super::words::escaped;
use crate::control::client::Client;
use crate::control::types;

#[derive(Debug, Args)]
pub(super) struct Stat {
    #[command(flatten)]
    format: Format,
    /// All drops, in the layout of /proc/net/xfrm_stat
    #[arg(long, conflicts_with = "json")]
    xfrm: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// List the ports
    List(Format),
    /// The counters of one port, as `ethtool -S` prints them
    Stat {
        #[command(flatten)]
        format: Format,
        /// The port, as HOST/VM or HOST/uplink; with one host VM or uplink alone
        port: String,
    },
}

pub(super) fn run(client: &Client, stat: &Stat, out: &mut dyn Write) -> Result<(), Stop> {
    let stats: types::Stats = client.get("/v1/stats")?;
    if stat.format.json {
        return json(out, &stats);
    }
    if stat.xfrm {
        for (name, count) in &stats.xfrm {
            writeln!(out, "{name:<24}\t{count}")?;
        }
        return Ok(());
    }
    print(out, &stats)
}

pub(super) fn run_port(
    client: &Client,
    command: PortCommand,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    match command {
        PortCommand::List(format) => {
            let found: types::Ports = client.get("/v1/ports")?;
            if format.json {
                return json(out, &found);
            }
            let row = |port: &types::Port| {
                vec![
                    port.name.clone(),
                    if port.up { "up" } else { "DOWN" }.to_owned(),
                    port.mtu.to_string(),
                    grouped(port.rx_packets),
                    grouped(port.rx_bytes),
                    grouped(port.tx_packets),
                    grouped(port.tx_bytes),
                    grouped(port.rx_errors),
                    grouped(port.tx_dropped),
                ]
            };
            table::print(
                out,
                &[
                    "PORT",
                    "LINK",
                    ">MTU",
                    ">RX PACKETS",
                    ">RX BYTES",
                    ">TX PACKETS",
                    ">TX BYTES",
                    ">RX ERRORS",
                    ">TX DROPPED",
                ],
                found.ports.iter().map(row),
            )?;
        }
        PortCommand::Stat { format, port } => {
            let path = path(client, &port)?;
            let found: types::PortCounters = client.get(&path)?;
            if format.json {
                return json(out, &found);
            }
            writeln!(out, "NIC statistics:")?;
            for (name, value) in &found.counters {
                writeln!(out, "     {name}: {value}")?;
            }
        }
    }
    Ok(())
}

fn path(client: &Client, port: &str) -> Result<String, Stop> {
    if let Some((host, name)) = port.split_once('/') {
        return Ok(format!("/v1/ports/{}/{}", escaped(host), escaped(name)));
    }
    let found: types::Ports = client.get("/v1/ports")?;
    let names: Vec<_> = found
        .ports
        .iter()
        .filter_map(|known| known.name.split_once('/'))
        .filter(|(_, name)| *name == port)
        .collect();
    match names.as_slice() {
        [(host, name)] => Ok(format!("/v1/ports/{}/{}", escaped(host), escaped(name))),
        [] => Err(Stop::NotFound(format!(
            "port {port}: not found; there are {}",
            known(&found)
        ))),
        _ => Err(Stop::Usage(format!(
            "{port}: several hosts have one; say HOST/{port}"
        ))),
    }
}

/// The names of the ports that there are, or of the first of many.
fn known(found: &types::Ports) -> String {
    const SHOWN: usize = 12;
    let names = found.ports.iter().map(|port| port.name.as_str());
    let mut names: Vec<_> = names.take(SHOWN).collect();
    if found.ports.len() > SHOWN {
        names.push("others (`vesper port list`)");
    }
    names.join(", ")
}

fn print(out: &mut dyn Write, stats: &types::Stats) -> Result<(), Stop> {
    for host in &stats.hosts {
        writeln!(
            out,
            "{}: sealed {} packets ({} bytes), opened {} packets ({} bytes)",
            host.name,
            grouped(host.sealed_packets),
            grouped(host.sealed_bytes),
            grouped(host.opened_packets),
            grouped(host.opened_bytes)
        )?;
        for (title, counts) in [("ESP dropped", &host.esp_drops), ("lost", &host.losses)] {
            if !counts.is_empty() {
                writeln!(out, "  {title}: {}", reasons(counts))?;
            }
        }
        let row = |vm: &types::VmStats| {
            vec![
                format!("  {}", vm.name),
                vm.path.clone(),
                grouped(vm.tx_packets),
                grouped(vm.rx_packets),
                grouped(vm.sealed),
                grouped(vm.opened),
                format!("{}/{}", vm.sas, vm.sa_limit),
                reasons(&vm.losses),
            ]
        };
        table::print(
            out,
            &[
                "  VM",
                "PATH",
                ">SENT",
                ">RECEIVED",
                ">SEALED",
                ">OPENED",
                ">SAS",
                "LOST",
            ],
            host.vms.iter().map(row),
        )?;
    }
    for worker in &stats.workers {
        let load = worker.busy_nanos * 100 / worker.elapsed_nanos.max(1);
        let cpu = worker
            .cpu
            .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string());
        writeln!(out, "CPU {cpu}: {load} % busy: {}", worker.roles)?;
    }
    Ok(())
}

fn reasons(counts: &std::collections::BTreeMap<String, u64>) -> String {
    let all: Vec<_> = counts
        .iter()
        .map(|(reason, count)| format!("{reason} {}", grouped(*count)))
        .collect();
    match all.is_empty() {
        true => "-".to_owned(),
        false => all.join(", "),
    }
}
