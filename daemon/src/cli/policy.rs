//! `vesper policy`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;

use super::answer::{Stop, json};
use super::{Format, events, table, words, xfrm};
use crate::control::client::Client;
use crate::control::types;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add one: vm V src P dst P dir out tmpl src A dst B proto esp reqid N mode tunnel
    Add {
        /// What follows `ip xfrm policy add`
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Add one in the place of that for the same packets, if there is one
    Update {
        /// What follows `ip xfrm policy update`
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Delete those that these words name
    #[command(visible_alias = "delete")]
    Del {
        /// Some of host, vm, dir, index, src, dst, proto, sport, dport with their values
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Delete all that these words name; without words all
    Flush {
        /// Some of host, vm, dir with their values
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// List those that these words name; without words all
    List {
        #[command(flatten)]
        format: Format,
        /// As `ip xfrm policy` prints them
        #[arg(long, visible_alias = "raw", conflicts_with = "json")]
        xfrm: bool,
        /// Some of host, vm, dir, index, src, dst, proto, sport, dport with their values
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Tell everything about those that these words name
    #[command(visible_alias = "get")]
    Show {
        #[command(flatten)]
        format: Format,
        /// Some of host, vm, dir, index, src, dst, proto, sport, dport with their values
        #[arg(required = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Tell when the policies of a machine change, as it happens
    Monitor(Format),
    /// Add those of a file of `ip xfrm policy add` lines, all or none
    Import {
        /// The file [default: standard input]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(client: &Client, command: Command, out: &mut dyn Write) -> Result<(), Stop> {
    match command {
        Command::Add { words } => {
            client.ask(Method::POST, "/v1/policies", &words::body(&words))?;
        }
        Command::Update { words } => {
            client.ask(Method::PUT, "/v1/policies", &words::body(&words))?;
        }
        Command::Del { words } => {
            delete(client, &words::query(&words, &[])?, out)?;
        }
        Command::Flush { words } => {
            delete(client, &words::query(&words, &[("all", "true")])?, out)?;
        }
        Command::List {
            format,
            xfrm: raw,
            words,
        } => {
            let found: types::Policies = client.get(&list(&words)?)?;
            match (format.json, raw) {
                (true, _) => json(out, &found)?,
                (false, true) => {
                    let mut policies = found.policies.iter();
                    policies.try_for_each(|policy| xfrm::policy(out, policy))?;
                }
                (false, false) => print(out, &found.policies)?,
            }
        }
        Command::Show { format, words } => {
            let found: types::Policies = client.get(&list(&words)?)?;
            if found.policies.is_empty() {
                let words = words.join(" ");
                return Err(Stop::NotFound(format!(
                    "{words}: no such policy; list them"
                )));
            }
            match format.json {
                true => json(out, &found)?,
                false => (found.policies.iter()).try_for_each(|policy| details(out, policy))?,
            }
        }
        Command::Monitor(format) => {
            events::follow(client, format, out, |event| {
                matches!(&*event.kind, "policies-changed" | "lost")
            })?;
        }
        Command::Import { file } => {
            let text = words::whole(file.as_deref())?;
            let text = str::from_utf8(&text)
                .map_err(|_| Stop::Usage("policies are text in UTF-8".to_owned()))?;
            let body = serde_json::json!({ "words": text }).to_string();
            let count: types::Count =
                client.send_for(Method::POST, "/v1/policies", body.as_bytes())?;
            writeln!(out, "{} added", count.count)?;
        }
    }
    Ok(())
}

fn list(words: &[String]) -> Result<String, Stop> {
    Ok(format!("/v1/policies{}", words::query(words, &[])?))
}

fn delete(client: &Client, query: &str, out: &mut dyn Write) -> Result<(), Stop> {
    let path = format!("/v1/policies{query}");
    let count: types::Count = client.send_for(Method::DELETE, &path, &[])?;
    writeln!(out, "{} deleted", count.count)?;
    Ok(())
}

fn print(out: &mut dyn Write, policies: &[types::Policy]) -> io::Result<()> {
    let row = |policy: &types::Policy| {
        vec![
            policy.index.to_string(),
            format!("{}/{}", policy.host, policy.vm),
            policy.dir.clone(),
            policy.priority.to_string(),
            policy.action.clone(),
            match policy.selector.is_empty() {
                true => "all".to_owned(),
                false => policy.selector.clone(),
            },
            policy
                .words
                .split_once(" tmpl ")
                .map_or_else(String::new, |(_, template)| template.to_owned()),
        ]
    };
    table::print(
        out,
        &[
            ">INDEX",
            "VM",
            "DIR",
            ">PRIORITY",
            "ACTION",
            "PACKETS",
            "TEMPLATE",
        ],
        policies.iter().map(row),
    )
}

fn details(out: &mut dyn Write, policy: &types::Policy) -> io::Result<()> {
    let packets = match policy.selector.is_empty() {
        true => "all",
        false => &policy.selector,
    };
    for (name, value) in [
        ("number", format!("#{}", policy.index)),
        ("owner", format!("{}/{}", policy.host, policy.vm)),
        ("direction", policy.dir.clone()),
        ("priority", policy.priority.to_string()),
        ("action", policy.action.clone()),
        ("packets", packets.to_owned()),
        ("origin", policy.origin.clone()),
        ("words", policy.words.clone()),
    ] {
        writeln!(out, "{name:24}{value}")?;
    }
    Ok(())
}
