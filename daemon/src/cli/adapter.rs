//! `vesper adapter` and `vesper switch`.

use std::io::Write;

use clap::Subcommand;
use hyper::Method;

use super::answer::{Stop, json};
use super::{Format, table, words};
use crate::control::client::Client;
use crate::control::types;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What the adapters have, can do, and do at present
    List(Format),
    /// Whether an adapter would take an association with these words, or every reason why not
    WhyNot {
        #[command(flatten)]
        format: Format,
        /// What follows `ip xfrm state add`
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SwitchCommand {
    /// The NIC switches and their virtual functions
    List(Format),
    /// Make the NIC switch of an adapter: once, and before its first machine
    Create {
        /// Virtual functions that there will be
        virtual_functions: u16,
        /// Queue pairs of the default port
        #[arg(long, default_value_t = 1)]
        queue_pairs: u16,
        /// The host; may be left out if there is only one
        #[arg(long)]
        host: Option<String>,
    },
}

pub(super) fn run(client: &Client, command: Command, out: &mut dyn Write) -> Result<(), Stop> {
    match command {
        Command::List(format) => {
            let found: types::Adapters = client.get("/v1/adapter")?;
            if format.json {
                return json(out, &found);
            }
            for adapter in &found.adapters {
                print(out, adapter)?;
            }
        }
        Command::WhyNot { format, words } => {
            let body = words::body(&words);
            let found: types::WhyNot =
                client.send_for(Method::POST, "/v1/adapter/why-not", &body)?;
            if format.json {
                return json(out, &found);
            }
            for types::ModeReasons { mode, reasons } in &found.modes {
                match reasons.is_empty() {
                    true => writeln!(out, "{mode}: yes")?,
                    false => writeln!(out, "{mode}: no: {}", reasons.join("; "))?,
                }
            }
        }
    }
    Ok(())
}

pub(super) fn run_switch(
    client: &Client,
    command: SwitchCommand,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    match command {
        SwitchCommand::List(format) => {
            let found: types::Switches = client.get("/v1/switch")?;
            if format.json {
                return json(out, &found);
            }
            for switch in &found.switches {
                print_switch(out, switch)?;
            }
        }
        SwitchCommand::Create {
            virtual_functions,
            queue_pairs,
            host,
        } => {
            let new = types::NewSwitch {
                host,
                virtual_functions,
                queue_pairs,
            };
            let body = serde_json::to_vec(&new).map_err(std::io::Error::from)?;
            let made: types::Switch = client.send_for(Method::POST, "/v1/switch", &body)?;
            print_switch(out, &made)?;
        }
    }
    Ok(())
}

fn used(usage: types::Usage) -> String {
    format!("{} of {}", usage.used, usage.limit)
}

fn print(out: &mut dyn Write, adapter: &types::Adapter) -> std::io::Result<()> {
    writeln!(
        out,
        "{}: {}, {} processors, {} SAs, {} queues, {} filters",
        adapter.host,
        adapter.profile,
        adapter.processors,
        used(adapter.sas),
        used(adapter.queues),
        used(adapter.filters)
    )?;
    for capability in &adapter.capabilities {
        let types::Capability {
            name,
            supported,
            enabled,
        } = capability;
        match supported == enabled {
            true => writeln!(out, "  {name:24}{supported}")?,
            false => writeln!(out, "  {name:24}{enabled} (supported: {supported})")?,
        }
    }
    Ok(())
}

fn print_switch(out: &mut dyn Write, switch: &types::Switch) -> std::io::Result<()> {
    if !switch.exists {
        return writeln!(
            out,
            "{}: no NIC switch; it has to be made before the first machine",
            switch.host
        );
    }
    writeln!(
        out,
        "{}: {} virtual functions, {} queue pairs",
        switch.host,
        used(switch.virtual_functions),
        used(switch.queue_pairs)
    )?;
    let row = |function: &types::Function| {
        vec![
            format!("  VF {}", function.id),
            function.vm.clone(),
            function.state.clone(),
        ]
    };
    match switch.functions.is_empty() {
        true => Ok(()),
        false => table::print(
            out,
            &["  FUNCTION", "VM", "STATE"],
            switch.functions.iter().map(row),
        ),
    }
}
