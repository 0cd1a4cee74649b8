//! The grammar of `ip xfrm policy add`.

use std::net::IpAddr;

use vesper_sa::{Direction, Mode, Selector};

use super::Reason;
use super::selector;
use super::state::{ip_address, mode, once};
use super::words::{Fault, Words};

/// What an `ip xfrm policy add` line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLine {
    /// The line of the file that it begins on, counted from 1.
    pub line: usize,
    /// `host`: the host that has the policy; not a word of `ip`.
    pub host: Option<String>,
    /// `vm`: the virtual machine whose packets it is about; not a word of `ip`.
    pub vm: Option<String>,
    /// `dir`.
    pub direction: Direction,
    /// The packets.
    pub selector: Selector,
    /// `priority`: policies with a lower number come first; 0 if the line has none.
    pub priority: u32,
    /// `action` and `tmpl`.
    pub action: PolicyAction,
}

/// What a policy does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction {
    /// `action block`.
    Block,
    /// Without `tmpl`: as they are.
    Pass,
    /// `tmpl`: with ESP.
    Protect(Template),
}

/// The words of `tmpl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// `src`: where the tunnel begins.
    pub source: Option<IpAddr>,
    /// `dst`: where the tunnel ends.
    pub destination: Option<IpAddr>,
    /// `reqid`, which names the associations that serve the policy; never 0.
    pub reqid: u32,
    /// `mode`; transport if the line has none.
    pub mode: Mode,
}

/// Parses what follows `ip xfrm policy add`.
pub(super) fn parse(line: usize, words: &mut Words<'_>) -> Result<PolicyLine, Fault> {
    let mut draft = Draft::default();
    while let Some(word) = words.peek() {
        match word {
            "src" | "dst" | "proto" | "sport" | "dport" | "type" | "code" | "key" | "dev" => {
                if draft.selector.is_some() {
                    return Err(words.fault_here(Reason::Twice));
                }
                draft.selector = Some(selector::parse(words)?);
            }
            _ => {
                words.step();
                draft.word(words)?;
            }
        }
    }
    draft.finish(line, words)
}

#[derive(Default)]
struct Draft {
    host: Option<String>,
    vm: Option<String>,
    direction: Option<Direction>,
    selector: Option<Selector>,
    priority: Option<u32>,
    blocks: Option<bool>,
    template: Option<Template>,
}

impl Draft {
    fn word(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        match words.current() {
            "host" => {
                let host = words.value()?.to_owned();
                once(&mut self.host, host, words)
            }
            "vm" => {
                let vm = words.value()?.to_owned();
                once(&mut self.vm, vm, words)
            }
            "dir" => {
                let direction = match words.value()? {
                    "in" => Direction::Inbound,
                    "out" => Direction::Outbound,
                    "fwd" => {
                        return Err(words.fault(Reason::Unsupported(
                            "packets of a virtual machine are not forwarded; leave the line out, \
                             `dir in` covers what is received",
                        )));
                    }
                    _ => return Err(words.fault(Reason::Expected("in or out"))),
                };
                once(&mut self.direction, direction, words)
            }
            "action" => {
                let blocks = match words.value()? {
                    "allow" => false,
                    "block" => true,
                    _ => return Err(words.fault(Reason::Expected("allow or block"))),
                };
                once(&mut self.blocks, blocks, words)
            }
            "priority" => {
                let priority = words.number_u32()?;
                once(&mut self.priority, priority, words)
            }
            "tmpl" => {
                let template = template(words)?;
                match self.template.replace(template) {
                    None => Ok(()),
                    Some(_) => Err(words.fault_at(
                        "tmpl",
                        Reason::Unsupported(
                            "only one `tmpl` is supported: one ESP header around a packet",
                        ),
                    )),
                }
            }
            "ptype" => match words.value()? {
                "main" => Ok(()),
                _ => Err(words.fault(Reason::Expected("main; there are no sub policies"))),
            },
            "flag" => match words.value()? {
                "localok" => Ok(()),
                _ => Err(words.fault(Reason::Unsupported("only flag localok is known"))),
            },
            // The kernel's own name for the policy, and its route lookup.
            "index" | "if_id" => words.number_u32().map(drop),
            "offload" => {
                if words.peek() == Some("packet") {
                    words.value()?;
                }
                if words.value()? != "dev" {
                    return Err(words.fault(Reason::Expected("[ packet ] dev NAME")));
                }
                words.value().map(drop)
            }
            "mark" => Err(words.fault(Reason::Unsupported(
                "packets of a virtual machine carry no firewall mark; leave `mark` out",
            ))),
            "ctx" => Err(words.fault(Reason::Unsupported(
                "security contexts are labels of the local system; leave `ctx` out",
            ))),
            "limit" => Err(words.fault(Reason::Unsupported(
                "policies do not expire here; limit the association",
            ))),
            _ => Err(words.unknown()),
        }
    }

    fn finish(self, line: usize, words: &Words<'_>) -> Result<PolicyLine, Fault> {
        let Some(direction) = self.direction else {
            return Err(words.fault_at("dir", Reason::Missing));
        };
        let action = match (self.blocks, self.template) {
            (Some(true), None) => PolicyAction::Block,
            (Some(true), Some(_)) => {
                return Err(words.fault_at(
                    "action",
                    Reason::Unsupported("block and `tmpl` contradict each other; leave one out"),
                ));
            }
            (_, Some(template)) => PolicyAction::Protect(template),
            (_, None) => PolicyAction::Pass,
        };
        Ok(PolicyLine {
            line,
            host: self.host,
            vm: self.vm,
            direction,
            selector: self.selector.unwrap_or_default(),
            priority: self.priority.unwrap_or(0),
            action,
        })
    }
}

/// The words after `tmpl`, up to the first that is not part of a template.
fn template(words: &mut Words<'_>) -> Result<Template, Fault> {
    let mut source = None;
    let mut destination = None;
    let mut reqid = None;
    let mut found = None;
    while let Some(word) = words.peek() {
        match word {
            "src" => {
                words.step();
                let address = ip_address(words)?;
                once(&mut source, address, words)?;
            }
            "dst" => {
                words.step();
                let address = ip_address(words)?;
                once(&mut destination, address, words)?;
            }
            "proto" => {
                words.step();
                if !matches!(words.value()?, "esp" | "50") {
                    return Err(words.fault(Reason::Unsupported("only esp is supported")));
                }
            }
            "reqid" => {
                words.step();
                let number = words.number_u32()?;
                once(&mut reqid, number, words)?;
            }
            "mode" => {
                words.step();
                let mode = mode(words)?;
                once(&mut found, mode, words)?;
            }
            "spi" => {
                words.step();
                if words.number_u32()? != 0 {
                    return Err(words.fault(Reason::Unsupported(
                        "a policy finds its associations by reqid, so that they can be replaced; \
                         leave `spi` out",
                    )));
                }
            }
            "level" => {
                words.step();
                if words.value()? != "required" {
                    return Err(words.fault(Reason::Unsupported(
                        "packets would leave in clear text while there is no association; only \
                         required is supported",
                    )));
                }
            }
            _ => break,
        }
    }
    let Some(reqid) = reqid.filter(|&reqid| reqid != 0) else {
        return Err(words.fault_at(
            "reqid",
            Reason::Expected("tmpl ... reqid N, by which the policy finds its associations"),
        ));
    };
    let mode = found.unwrap_or(Mode::Transport);
    if mode == Mode::Tunnel && destination.is_none_or(|address| address.is_unspecified()) {
        return Err(words.fault_at(
            "dst",
            Reason::Expected("tmpl ... dst ADDRESS, where the tunnel ends"),
        ));
    }
    Ok(Template {
        source,
        destination,
        reqid,
        mode,
    })
}
