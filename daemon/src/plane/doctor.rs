//! What is wrong here, and how to mend it.

use std::collections::BTreeMap;
use std::fs;

use capctl::caps::{Cap, CapState};
use vesper_esp::Suite;
use vesper_esp::aead::Implementation;
use vesper_sa::{Direction, ReplayProtection, SaState};
use vesper_verify::xfrm::PolicyAction;

use super::{Plane, PolicyFilter, SaFilter, Scope};

/// Something that the doctor found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `cpu`, `vm web1`...
    pub about: String,
    /// What was found.
    pub text: String,
    /// How to mend it; empty if there is nothing to mend.
    pub remedy: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Not an error, but to be known.
    Warning,
    /// Something does not work, or is not safe.
    Problem,
}

/// Of 10 associations that are the limit, this many are near it.
const NEAR: u64 = 9;

impl Plane {
    /// Everything that is worth saying about the state of the daemon, worst first.
    pub fn doctor(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        kernel(&mut findings);
        rights(&mut findings);
        if let Some(reason) = self.persistence.trouble() {
            findings.push(Finding::problem(
                "store".to_owned(),
                format!("nothing can be made durable: {reason}"),
                "make room, or mend the disk: SAs go on within what they were granted, then stop",
            ));
        }
        for node in self.nodes() {
            self.refresh_placements(node.name());
            let usage = node.nic().usage().ipsec_sas;
            if near(usage.used, usage.capacity) {
                findings.push(Finding::warning(
                    format!("adapter {}", node.name()),
                    format!("holds {} of {} SAs", usage.used, usage.capacity),
                    "further SAs work in software; delete what is not used",
                ));
            }
        }
        self.machines(&mut findings);
        self.associations(&mut findings);
        self.clear_text(&mut findings);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    fn machines(&self, findings: &mut Vec<Finding>) {
        for vm in self.vms() {
            let name = format!("vm {}/{}", vm.spec.host, vm.spec.name);
            for fallback in &vm.fallbacks {
                findings.push(Finding::warning(
                    name.clone(),
                    format!("does not get what it asks for: {fallback}"),
                    "free it elsewhere, or ask for less",
                ));
            }
            let owned = self.registry().owned(vm.node, vm.id);
            if near(owned, vm.spec.sa_limit) {
                findings.push(Finding::warning(
                    name.clone(),
                    format!("has {owned} of {} SAs", vm.spec.sa_limit),
                    "raise its sa_limit, or delete SAs",
                ));
            }
            let Ok(node) = self.node(vm.node) else {
                continue;
            };
            let offloaded = node
                .handle
                .nic()
                .vm_usage(vm.id)
                .map(|usage| usage.ipsec_sas);
            if let Some(usage) = offloaded.filter(|usage| near(usage.used, usage.capacity)) {
                findings.push(Finding::warning(
                    name,
                    format!("has {} of {} offloaded SAs", usage.used, usage.capacity),
                    "further SAs work in software; raise its ipsec_offload_limit",
                ));
            }
        }
    }

    fn associations(&self, findings: &mut Vec<Finding>) {
        let mut in_software: BTreeMap<String, u32> = BTreeMap::new();
        for record in self.sas(Scope::All, &SaFilter::default()) {
            let params = record.sa.params();
            let name = format!(
                "sa {} to {} of {}/{}",
                params.spi,
                params.destination,
                record.host,
                record.vm.as_deref().unwrap_or("-")
            );
            if params.direction == Direction::Inbound && params.replay == ReplayProtection::Off {
                findings.push(Finding::problem(
                    name.clone(),
                    "has no replay protection: every packet can be sent again by anybody",
                    "replace it by one with replay-window 64 or more",
                ));
            }
            if let Some(why) = &record.needs_rekey {
                findings.push(Finding::problem(
                    name,
                    format!("carries nothing: {why}"),
                    "rekey it",
                ));
            } else if record.sa.state() >= SaState::Dead {
                findings.push(Finding::problem(
                    name,
                    "has reached a hard limit and carries nothing",
                    "rekey it, and delete it",
                ));
            } else if record.sa.state() == SaState::Dying {
                findings.push(Finding::warning(
                    name,
                    "has reached a soft limit",
                    "rekey it before the hard limit",
                ));
            }
            if let Err(reason) = record.offloaded() {
                *in_software.entry(reason.to_string()).or_default() += 1;
            }
        }
        for (reason, count) in in_software {
            findings.push(Finding::warning(
                "offload".to_owned(),
                format!("{count} SAs work in software: {reason}"),
                "`vesper adapter why-not WORDS` tells more",
            ));
        }
    }

    /// Policies, and their absence, that let packets pass as they are.
    fn clear_text(&self, findings: &mut Vec<Finding>) {
        for vm in self.vms() {
            if !vm.spec.require_protection {
                findings.push(Finding::problem(
                    format!("vm {}/{}", vm.spec.host, vm.spec.name),
                    "packets that no policy matches pass in clear text",
                    "set require_protection = true, and bypass by policy what has to",
                ));
            }
        }
        for policy in self.policies(&PolicyFilter::default()) {
            if policy.line.action == PolicyAction::Pass {
                findings.push(Finding::warning(
                    format!("policy {}", policy.line),
                    "lets packets pass in clear text",
                    "add a tmpl, unless that is meant",
                ));
            }
        }
    }
}

fn kernel(findings: &mut Vec<Finding>) {
    let available: Vec<_> = Implementation::available()
        .map(Implementation::name)
        .collect();
    let fastest = Suite::by_name("aes256gcm16").map(Implementation::fastest);
    let Some(fastest) = fastest else { return };
    let text = format!(
        "AES-GCM runs on {fastest}; here are {}",
        available.join(", ")
    );
    let forced = std::env::var("VESPER_KERNEL").ok();
    findings.push(match (fastest, forced) {
        (_, Some(forced)) => Finding::warning(
            "cpu".to_owned(),
            format!("{text}; VESPER_KERNEL={forced} forces the choice"),
            "unset VESPER_KERNEL",
        ),
        (Implementation::Ring | Implementation::RustCrypto, None) => Finding::warning(
            "cpu".to_owned(),
            format!("{text}: the CPU has no AES-NI, or hides it"),
            "pass the host's CPU features to this machine (QEMU: -cpu host)",
        ),
        _ => Finding {
            severity: Severity::Fine,
            about: "cpu".to_owned(),
            text,
            remedy: String::new(),
        },
    });
}

/// What this process may do, and whether its keys may get out of its memory.
fn rights(findings: &mut Vec<Finding>) {
    let about = || "rights".to_owned();
    let has = CapState::get_current().is_ok_and(|state| {
        state.effective.has(Cap::NET_ADMIN) && state.effective.has(Cap::NET_RAW)
    });
    if !has {
        findings.push(Finding::warning(
            about(),
            "can not open interfaces, which ports of kind `tap` and `af_packet` need",
            "give vesperd CAP_NET_ADMIN and CAP_NET_RAW, as its unit does, if there are such ports",
        ));
    }
    let lines = |file| fs::read_to_string(file).unwrap_or_default();
    let locked = lines("/proc/self/status")
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .is_some_and(|size| size.trim() != "0 kB");
    // The first line is the heading.
    let has_swap = lines("/proc/swaps").lines().count() > 1;
    if !locked && has_swap {
        findings.push(Finding::warning(
            about(),
            "memory is not locked, so that keys may get into the swap",
            "give vesperd CAP_IPC_LOCK and LimitMEMLOCK=infinity, as its unit does",
        ));
    }
    if has && (locked || !has_swap) {
        findings.push(Finding {
            severity: Severity::Fine,
            about: about(),
            text: format!(
                "interfaces can be opened; {}",
                match locked {
                    true => "memory is locked",
                    false => "memory is not locked, but there is no swap",
                }
            ),
            remedy: String::new(),
        });
    }
}

fn near(used: u32, limit: u32) -> bool {
    limit > 0 && u64::from(used) * 10 >= u64::from(limit) * NEAR
}

impl Finding {
    fn warning(about: String, text: impl Into<String>, remedy: &str) -> Self {
        Self {
            severity: Severity::Warning,
            about,
            text: text.into(),
            remedy: remedy.to_owned(),
        }
    }

    fn problem(about: String, text: impl Into<String>, remedy: &str) -> Self {
        Self {
            severity: Severity::Problem,
            ..Self::warning(about, text, remedy)
        }
    }
}
