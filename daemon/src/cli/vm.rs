//! `vesper vm`.

use std::io::Write;

use clap::{Args, Subcommand};
use hyper::Method;

use super::answer::{Stop, json};
use super::words::escaped;
use super::{Format, table};
use crate::control::client::Client;
use crate::control::types;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the machines
    List(Format),
    /// Tell everything about one
    Show {
        #[command(flatten)]
        format: Format,
        /// The machine, as NAME or HOST/NAME
        name: String,
    },
    /// Add one
    Add(Box<Add>),
    /// Change the limits of one while its packets pass
    Set(Set),
    /// Move one behind another port; its associations stay
    Move {
        /// The machine, as NAME or HOST/NAME
        name: String,
        /// The port, as a table of the configuration in TOML, such as 'loopback'
        port: String,
    },
    /// Remove one with its port, policies and associations
    #[command(visible_alias = "delete")]
    Del {
        /// The machine, as NAME or HOST/NAME
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its name, as NAME or HOST/NAME
    name: String,
    /// Its Ethernet address
    #[arg(long)]
    mac: String,
    /// The host; may be left out if there is only one
    #[arg(long)]
    host: Option<String>,
    /// Its VLAN
    #[arg(long)]
    vlan: Option<u16>,
    /// What it is behind, as a table of the configuration in TOML, such as 'loopback'
    #[arg(long)]
    port: Option<String>,
    /// Associations that it may have
    #[arg(long)]
    sa_limit: Option<u32>,
    /// Associations that may be offloaded; 0 is none
    #[arg(long)]
    ipsec_offload_limit: Option<u32>,
    /// Share of a receive queue and of the processors, 1 to 100; 0 is no queue
    #[arg(long)]
    vmq_weight: Option<u16>,
    /// The wish for a virtual function, 1 to 100; 0 is none
    #[arg(long)]
    iov_weight: Option<u16>,
    /// Packets that no policy matches pass as they are
    #[arg(long)]
    clear_text: bool,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The machine, as NAME or HOST/NAME
    name: String,
    /// Associations that it may have
    #[arg(long)]
    sa_limit: Option<u32>,
    /// Associations that may be offloaded; 0 is none
    #[arg(long)]
    ipsec_offload_limit: Option<u32>,
    /// The processor of the adapter that serves it
    #[arg(long)]
    processor: Option<usize>,
    /// Whether packets that no policy matches are discarded
    #[arg(long)]
    require_protection: Option<bool>,
}

pub(super) fn run(client: &Client, command: Command, out: &mut dyn Write) -> Result<(), Stop> {
    match command {
        Command::List(format) => {
            let found: types::Vms = client.get("/v1/vms")?;
            if format.json {
                json(out, &found)?;
            } else {
                print(out, &found.vms)?;
            }
        }
        Command::Show { format, name } => {
            let vm: types::Vm = client.get(&path(client, &name)?)?;
            if format.json {
                json(out, &vm)?;
            } else {
                details(out, &vm)?;
            }
        }
        Command::Add(add) => {
            let (host, name) = match add.name.split_once('/') {
                Some((host, name)) => (Some(host.to_owned()), name.to_owned()),
                None => (None, add.name.clone()),
            };
            if let (Some(one), Some(other)) = (&host, &add.host)
                && one != other
            {
                let both = format!("{}: not on host {other}; name one host", add.name);
                return Err(Stop::Usage(both));
            }
            let new = types::NewVm {
                host: host.or(add.host),
                name,
                mac: add.mac,
                vlan: add.vlan,
                port: add.port.as_deref().map(port).transpose()?,
                sa_limit: add.sa_limit,
                ipsec_offload_limit: add.ipsec_offload_limit,
                vmq_weight: add.vmq_weight,
                iov_weight: add.iov_weight,
                require_protection: add.clear_text.then_some(false),
            };
            let vm: types::Vm = client.send_for(Method::POST, "/v1/vms", &body(&new)?)?;
            for fallback in &vm.fallbacks {
                writeln!(out, "{}/{}: {fallback}", vm.host, vm.name)?;
            }
        }
        Command::Set(set) => {
            let patch = types::VmPatch {
                sa_limit: set.sa_limit,
                ipsec_offload_limit: set.ipsec_offload_limit,
                processor: set.processor,
                require_protection: set.require_protection,
                port: None,
            };
            let path = path(client, &set.name)?;
            client.ask(Method::PATCH, &path, &body(&patch)?)?;
        }
        Command::Move { name, port: new } => {
            let patch = types::VmPatch {
                port: Some(port(&new)?),
                ..types::VmPatch::default()
            };
            client.ask(Method::PATCH, &path(client, &name)?, &body(&patch)?)?;
        }
        Command::Del { name } => {
            client.ask(Method::DELETE, &path(client, &name)?, &[])?;
        }
    }
    Ok(())
}

/// The path of a machine, of which only the name may have been given.
fn path(client: &Client, name: &str) -> Result<String, Stop> {
    if let Some((host, name)) = name.split_once('/') {
        return Ok(format!("/v1/vms/{}/{}", escaped(host), escaped(name)));
    }
    let found: types::Vms = client.get("/v1/vms")?;
    let hosts: Vec<_> = found
        .vms
        .iter()
        .filter(|vm| vm.name == name)
        .map(|vm| vm.host.as_str())
        .collect();
    match hosts.as_slice() {
        [host] => Ok(format!("/v1/vms/{}/{}", escaped(host), escaped(name))),
        [] => Err(Stop::NotFound(format!(
            "vm {name}: not found; list what there is, and name one of them"
        ))),
        hosts => Err(Stop::Usage(format!(
            "{name}: on hosts {}; say HOST/{name}",
            hosts.join(", ")
        ))),
    }
}

/// A port: a word, or a table in TOML.
fn port(text: &str) -> Result<serde_json::Value, Stop> {
    let document = match text.contains(['{', '=']) {
        true => format!("port = {text}"),
        false => format!("port = \"{text}\""),
    };
    let table: serde_json::Value = toml::from_str(&document)
        .map_err(|error| Stop::Usage(format!("port {text}: {}", error.message())))?;
    Ok(table["port"].clone())
}

fn body(value: &impl serde::Serialize) -> Result<Vec<u8>, Stop> {
    Ok(serde_json::to_vec(value).map_err(std::io::Error::from)?)
}

fn used(usage: types::Usage) -> String {
    format!("{}/{}", usage.used, usage.limit)
}

fn place(vm: &types::Vm) -> String {
    match (vm.function, vm.queue) {
        (Some(function), _) => format!("VF {function}"),
        (None, Some(queue)) => format!("queue {queue}"),
        (None, None) => "default queue".to_owned(),
    }
}

fn print(out: &mut dyn Write, vms: &[types::Vm]) -> std::io::Result<()> {
    let row = |vm: &types::Vm| {
        vec![
            format!("{}/{}", vm.host, vm.name),
            vm.mac.clone(),
            vm.vlan
                .map_or_else(|| "-".to_owned(), |vlan| vlan.to_string()),
            place(vm),
            vm.processor.to_string(),
            used(vm.sas),
            used(vm.offloaded),
            match vm.require_protection {
                true => "required".to_owned(),
                false => "CLEAR TEXT".to_owned(),
            },
        ]
    };
    table::print(
        out,
        &[
            "VM",
            "MAC",
            "VLAN",
            "PLACE",
            ">CPU",
            ">SAS",
            ">OFFLOADED",
            "PROTECTION",
        ],
        vms.iter().map(row),
    )
}

fn details(out: &mut dyn Write, vm: &types::Vm) -> std::io::Result<()> {
    for (name, value) in [
        ("machine", format!("{}/{}", vm.host, vm.name)),
        ("number", vm.id.to_string()),
        ("mac", vm.mac.clone()),
        (
            "vlan",
            vm.vlan
                .map_or_else(|| "-".to_owned(), |vlan| vlan.to_string()),
        ),
        ("place", place(vm)),
        ("processor", vm.processor.to_string()),
        ("SAs", used(vm.sas)),
        ("offloaded SAs", used(vm.offloaded)),
        ("offload", vm.offload.join(", ")),
        ("vmq weight", vm.vmq_weight.to_string()),
        ("iov weight", vm.iov_weight.to_string()),
        ("protection required", vm.require_protection.to_string()),
        ("origin", vm.origin.clone()),
    ] {
        writeln!(out, "{name:24}{value}")?;
    }
    for fallback in &vm.fallbacks {
        writeln!(out, "{:24}{fallback}", "does not get")?;
    }
    Ok(())
}
