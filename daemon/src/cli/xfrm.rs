//! Associations and policies as `ip xfrm` prints them.

use std::io::{self, Write};

use crate::control::types;

/// Words that begin a line of their own in `ip xfrm state`.
const BREAKS: [&str; 8] = [
    "replay-window",
    "aead",
    "auth-trunc",
    "encap",
    "tfcpad",
    "sel",
    "limit",
    "offload",
];

/// One association as `ip -s xfrm state` prints it.
pub(super) fn state(out: &mut dyn Write, sa: &types::Sa) -> io::Result<()> {
    writeln!(out, "src {} dst {}", sa.src, sa.dst)?;
    let spi = sa.spi.trim_start_matches("0x");
    let spi = u32::from_str_radix(spi, 16).unwrap_or(0);
    writeln!(
        out,
        "\tproto esp spi {}({spi}) reqid {}(0x{:08x}) mode {}",
        sa.spi, sa.reqid, sa.reqid, sa.mode
    )?;
    for line in rest(&sa.words) {
        writeln!(out, "\t{line}")?;
    }
    if !sa.words.contains(" dir ") {
        writeln!(out, "\tdir {}", sa.dir)?;
    }
    let owner = sa.vm.as_deref().unwrap_or("-");
    writeln!(out, "\thost {} vm {owner} state {}", sa.host, sa.state)?;
    writeln!(out, "\tlifetime current:")?;
    writeln!(out, "\t  {}(bytes), {}(packets)", sa.bytes, sa.packets)?;
    writeln!(out, "\t  add {}s ago", sa.age_seconds)?;
    writeln!(out, "\tstats:")?;
    writeln!(
        out,
        "\t  replay-window {} replay {} failed {}",
        sa.refused, sa.replays, sa.authentication_failures
    )
}

/// One policy as `ip xfrm policy` prints it.
pub(super) fn policy(out: &mut dyn Write, policy: &types::Policy) -> io::Result<()> {
    let selector = match policy.selector.is_empty() {
        true => "src 0.0.0.0/0 dst 0.0.0.0/0",
        false => &policy.selector,
    };
    writeln!(out, "{selector}")?;
    let action = match policy.action.as_str() {
        "discard" => "action block ",
        _ => "",
    };
    writeln!(
        out,
        "\tdir {} {action}priority {} index {}",
        policy.dir, policy.priority, policy.index
    )?;
    writeln!(out, "\thost {} vm {}", policy.host, policy.vm)?;
    if let Some((_, template)) = policy.words.split_once(" tmpl ") {
        let (ends, rest) = template.split_once("proto ").unwrap_or((template, ""));
        writeln!(out, "\ttmpl {}", ends.trim_end())?;
        writeln!(out, "\t\tproto {rest}")?;
    }
    Ok(())
}

/// What follows the mode, a line for each kind of word.
fn rest(words: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut words = words.split(' ').skip_while(|word| *word != "mode").skip(2);
    let mut after_offload = false;
    for word in &mut words {
        let begins = BREAKS.contains(&word) || (word == "dir" && !after_offload);
        after_offload |= word == "offload";
        match lines.last_mut() {
            Some(line) if !begins => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_broken_as_ip_does() {
        let words = "host a vm web1 src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x00001000 reqid 7 \
                     mode tunnel replay-window 64 flag esn aead rfc4106(gcm(aes)) \
                     <<Keys hidden>> 128 sel src 10.0.0.0/8 limit byte-soft 9 offload packet dir out";
        assert_eq!(
            rest(words),
            [
                "replay-window 64 flag esn",
                "aead rfc4106(gcm(aes)) <<Keys hidden>> 128",
                "sel src 10.0.0.0/8",
                "limit byte-soft 9",
                "offload packet dir out",
            ]
        );
    }
}
