//! `vesper sa`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;

use super::answer::{Stop, json};
use super::table::ago;
use super::{Format, events, words, xfrm};
use crate::control::client::Client;
use crate::control::types;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add one: [host H] [vm V] src A dst B proto esp spi N mode tunnel aead NAME KEY BITS ...
    ///
    /// Whoever can list processes sees the key on the command line: for other keys than those
    /// of tests use `import`.
    Add {
        /// What follows `ip xfrm state add`
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Change the limits of one; all other words have to be the same
    Update {
        /// What follows `ip xfrm state update`
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Delete the one that these words name
    #[command(visible_alias = "delete")]
    Del {
        /// Some of host, vm, src, dst, spi, reqid, mode, dir with their values, or its number
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Delete all that these words name; without words all
    #[command(visible_alias = "deleteall")]
    Flush {
        /// Some of host, vm, src, dst, spi, reqid, mode, dir with their values
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// List those that these words name; without words all
    List {
        #[command(flatten)]
        format: Format,
        /// As `ip -s xfrm state` prints them
        #[arg(long, visible_alias = "raw", conflicts_with = "json")]
        xfrm: bool,
        /// Print keys
        #[arg(long)]
        show_keys: bool,
        /// Some of host, vm, src, dst, spi, reqid, mode, dir with their values
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Tell everything about the one that these words name
    #[command(visible_alias = "get")]
    Show {
        #[command(flatten)]
        format: Format,
        /// Print its keys
        #[arg(long)]
        show_keys: bool,
        /// Some of host, vm, src, dst, spi, reqid, mode, dir with their values, or its number
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Tell what happens to associations, as it happens
    Monitor(Format),
    /// Add those of a file of `ip xfrm state add` lines, all or none
    ///
    /// Lines of `ip xfrm policy add` may be among them.
    Import {
        /// The host of lines that name neither host nor vm
        #[arg(long)]
        host: Option<String>,
        /// The machine of lines that name neither host nor vm
        #[arg(long)]
        vm: Option<String>,
        /// The file [default: standard input]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(client: &Client, command: Command, out: &mut dyn Write) -> Result<(), Stop> {
    match command {
        Command::Add { words } => {
            client.ask(Method::POST, "/v1/sas", &words::body(&words))?;
        }
        Command::Update { words } => {
            client.ask(Method::PUT, "/v1/sas", &words::body(&words))?;
        }
        Command::Del { words } => {
            let path = match number(&words) {
                Some(number) => format!("/v1/sas/{number}"),
                None => format!("/v1/sas{}", words::query(&words, &[])?),
            };
            client.ask(Method::DELETE, &path, &[])?;
        }
        Command::Flush { words } => {
            let path = format!("/v1/sas{}", words::query(&words, &[("all", "true")])?);
            let count: types::Count = client.send_for(Method::DELETE, &path, &[])?;
            writeln!(out, "{} deleted", count.count)?;
        }
        Command::List {
            format,
            xfrm: raw,
            show_keys,
            words,
        } => {
            let types::Sas { sas } = list(client, &words, show_keys)?;
            match (format.json, raw) {
                (true, _) => json(out, &types::Sas { sas })?,
                (false, true) => sas.iter().try_for_each(|sa| xfrm::state(out, sa))?,
                (false, false) => print(out, &sas, show_keys)?,
            }
        }
        Command::Show {
            format,
            show_keys,
            words,
        } => {
            let sa = one(client, &words, show_keys)?;
            if format.json {
                json(out, &sa)?;
            } else {
                details(out, &sa)?;
            }
        }
        Command::Monitor(format) => {
            events::follow(client, format, out, |event| {
                event.spi.is_some() || event.reqid.is_some() || event.kind == "lost"
            })?;
        }
        Command::Import { host, vm, file } => {
            let text = words::whole(file.as_deref())?;
            let more: Vec<_> = [("host", &host), ("vm", &vm)]
                .into_iter()
                .filter_map(|(word, value)| Some((word, value.as_deref()?)))
                .collect();
            let path = format!("/v1/sas/import{}", words::query(&[], &more)?);
            let count: types::Count = client.send_for(Method::POST, &path, &text)?;
            writeln!(out, "{} added", count.count)?;
        }
    }
    Ok(())
}

fn number(words: &[String]) -> Option<u64> {
    match words {
        [number] => number.trim_start_matches('#').parse().ok(),
        _ => None,
    }
}

fn list(client: &Client, words: &[String], keys: bool) -> Result<types::Sas, Stop> {
    let more: &[(&str, &str)] = if keys { &[("keys", "true")] } else { &[] };
    Ok(client.get(&format!("/v1/sas{}", words::query(words, more)?))?)
}

fn one(client: &Client, words: &[String], keys: bool) -> Result<types::Sa, Stop> {
    if let Some(number) = number(words) {
        let query = if keys { "?keys=true" } else { "" };
        return Ok(client.get(&format!("/v1/sas/{number}{query}"))?);
    }
    let mut found = list(client, words, keys)?.sas;
    match (found.pop(), found.len()) {
        (Some(sa), 0) => Ok(sa),
        (None, _) => Err(Stop::Client(crate::control::client::ClientError::Refused(
            404,
            types::Error {
                error: format!("{}: no such SA; list them", words.join(" ")),
                word: String::new(),
                value: String::new(),
                remedy: String::new(),
            },
        ))),
        (Some(_), others) => Err(Stop::Usage(format!(
            "{}: {} SAs; say more of vm, dst, spi and dir, or the number",
            words.join(" "),
            others + 1
        ))),
    }
}

/// In the manner of `swanctl --list-sas`.
fn print(out: &mut dyn Write, sas: &[types::Sa], keys: bool) -> io::Result<()> {
    let mut groups: BTreeMap<(String, u32, String, String), Vec<&types::Sa>> = BTreeMap::new();
    for sa in sas {
        let owner = format!("{}/{}", sa.host, sa.vm.as_deref().unwrap_or("-"));
        let kind = format!("{}, ESP:{}", sa.mode.to_uppercase(), sa.suite);
        let udp = match sa.words.contains(" encap ") {
            true => "-in-UDP".to_owned(),
            false => String::new(),
        };
        let name = (owner, sa.reqid, format!("{}{udp}", kind), String::new());
        groups.entry(name).or_default().push(sa);
    }
    for ((owner, reqid, kind, _), sas) in groups {
        writeln!(out, "{owner}: reqid {reqid}, {kind}")?;
        for sa in sas {
            writeln!(
                out,
                "  #{} {:3} {} {} === {}, {}, {}, {} bytes, {} packets, {} ago",
                sa.id,
                sa.dir,
                sa.spi.trim_start_matches("0x"),
                sa.src,
                sa.dst,
                sa.state,
                sa.offload,
                sa.bytes,
                sa.packets,
                ago(sa.age_seconds)
            )?;
            if let Some(why) = &sa.needs_rekey {
                writeln!(out, "      needs rekey: {why}")?;
            }
            if let Some(why) = &sa.why_not {
                writeln!(out, "      in software: {why}")?;
            }
            if keys {
                writeln!(out, "      {}", sa.words)?;
            }
        }
    }
    Ok(())
}

fn details(out: &mut dyn Write, sa: &types::Sa) -> io::Result<()> {
    let yes = |yes: bool| if yes { "on" } else { "off" }.to_owned();
    let window = match (sa.replay_window, sa.dir.as_str()) {
        (_, "out") => "-".to_owned(),
        (0, _) => "off".to_owned(),
        (packets, _) => format!("{packets} packets"),
    };
    let mut rows = vec![
        ("number", format!("#{}", sa.id)),
        (
            "owner",
            format!("{}/{}", sa.host, sa.vm.as_deref().unwrap_or("-")),
        ),
        ("direction", sa.dir.clone()),
        ("spi", sa.spi.clone()),
        ("outer", format!("{} to {}", sa.src, sa.dst)),
        ("mode", sa.mode.clone()),
        ("reqid", sa.reqid.to_string()),
        ("suite", sa.suite.clone()),
        ("state", sa.state.clone()),
        ("offload", sa.offload.clone()),
        ("esn", yes(sa.esn)),
        ("replay window", window),
        ("sequence", sa.sequence.to_string()),
        ("packets", sa.packets.to_string()),
        ("bytes", sa.bytes.to_string()),
        ("replays", sa.replays.to_string()),
        (
            "authentication failures",
            sa.authentication_failures.to_string(),
        ),
        ("refused", sa.refused.to_string()),
        ("age", ago(sa.age_seconds)),
        ("origin", sa.origin.clone()),
    ];
    for (name, why) in [("needs rekey", &sa.needs_rekey), ("why not", &sa.why_not)] {
        rows.extend(why.iter().map(|why| (name, why.clone())));
    }
    rows.push(("words", sa.words.clone()));
    for (name, value) in rows {
        writeln!(out, "{name:24}{value}")?;
    }
    Ok(())
}
