//! What has to fit together beyond the types of single values.

use std::collections::{BTreeMap, BTreeSet};

use nix::unistd::Group;
use vesper_esp::Suite;
use vesper_offload::Profile;
use vesper_sa::WindowSize;

use super::error::{Problem, nearest};
use super::model::{Config, HostConfig, PortConfig, Sizes, UserConfig, VmConfig};
use super::value::Located;
use crate::port::MOST_TAP_QUEUES;
use crate::port::vhost_user::MOST_QUEUE_PAIRS;

/// Everything that does not fit.
pub(super) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    unique(
        config.hosts.iter().map(|host| &host.name),
        "host",
        &mut problems,
    );
    check_daemon(config, &mut problems);
    for host in &config.hosts {
        check_host(host, &mut problems);
    }
    check_cables(config, &mut problems);
    check_pairs(config, &mut problems);
    problems
}

fn check_daemon(config: &Config, problems: &mut Vec<Problem>) {
    let control = &config.control;
    let groups = [&control.group, &control.vm_group];
    for group in groups.into_iter().flatten() {
        if !matches!(Group::from_name(group), Ok(Some(_))) {
            let message = format!("group `{group}` does not exist; create it, or name another");
            problem(problems, group.at(), message);
        }
    }
    for user in control.users.iter().chain(&control.vm_users) {
        if let UserConfig::Name(name) = &**user
            && user.uid().is_none()
        {
            let message = format!("user `{name}` does not exist; create it, or name another");
            problem(problems, user.at(), message);
        }
    }
    if let (Some(tcp), None) = (&control.tcp, &config.daemon.control) {
        let message = "tcp without a control socket; add `control` to [daemon]".to_owned();
        problem(problems, tcp.at(), message);
    }
}

fn check_host(host: &HostConfig, problems: &mut Vec<Problem>) {
    let profile = Profile::by_name(&host.adapter);
    if profile.is_none() {
        let names = Profile::all().map(|profile| profile.name);
        problem(
            problems,
            host.adapter.at(),
            format!(
                "adapter `{}` does not exist; use one of {}{}",
                host.adapter,
                names.join(", "),
                hint(&host.adapter, names)
            ),
        );
    }
    range(&host.processors, 1, 64, "processors", problems);
    range(&host.workers, 1, 64, "workers", problems);
    if *host.workers > *host.processors + 1 {
        problem(
            problems,
            host.workers.at(),
            format!(
                "{} workers for {} of the adapter and one of the host have nothing to do; use at \
                 most {}",
                host.workers,
                plural(*host.processors, "processor"),
                *host.processors + 1
            ),
        );
    }
    if let Some(cpus) = host.cpus.as_ref().filter(|cpus| cpus.is_empty()) {
        let message = "`cpus` is empty; name at least one CPU, or leave it out".to_owned();
        problem(problems, cpus.at(), message);
    }
    if !(512..=1 << 20).contains(&*host.buffers) {
        let message = format!("buffers is {}; use 512 to 1048576", host.buffers);
        problem(problems, host.buffers.at(), message);
    }
    if !(1522..=65_600).contains(&*host.frame) {
        let message = format!("frame is {} bytes; use 1522 to 65600", host.frame);
        problem(problems, host.frame.at(), message);
    }
    check_link(&host.uplink, *host.frame, problems);
    unique(host.vms.iter().map(|vm| &vm.name), "vm", problems);
    let mut addresses = BTreeMap::new();
    for vm in &host.vms {
        check_vm(vm, profile.as_ref(), problems);
        problems.extend(vm.states(host).err().into_iter().flatten());
        problems.extend(vm.policies(host).err().into_iter().flatten());
        check_link(&vm.port, *host.frame, problems);
        let place = (vm.mac.0, vm.vlan.map(|vlan| vlan.0));
        if let Some(other) = addresses.insert(place, &vm.name) {
            let message = format!("{} has the address {} already", other, vm.mac);
            problem(problems, vm.mac.at(), message);
        }
        if let PortConfig::Cable(_) = &*vm.port {
            let message = "a cable joins the uplinks of two hosts; a vm can not be behind it";
            problem(problems, vm.port.at(), message.to_owned());
        }
    }
}

/// Queues and lengths of ports to the outside.
fn check_link(port: &Located<PortConfig>, frame: u32, problems: &mut Vec<Problem>) {
    let (queues, most, mtu) = match &**port {
        PortConfig::VhostUser(config) => (config.queues, MOST_QUEUE_PAIRS, Some(config.mtu)),
        PortConfig::Tap(config) => (config.queues, MOST_TAP_QUEUES, config.mtu),
        _ => return,
    };
    if !(1..=most).contains(&queues) {
        let message = format!("{queues} queues; use 1 to {most}");
        problem(problems, port.at(), message);
    }
    // An Ethernet header and a tag come in front of the packet.
    let longest = frame.saturating_sub(18);
    if let Some(mtu) = mtu
        && !(576..=longest).contains(&mtu.into())
    {
        let message = format!(
            "mtu {mtu} with buffers for frames of {frame} bytes; use 576 to {longest}, or a \
             larger `frame` of the host"
        );
        problem(problems, port.at(), message);
    }
}

fn check_vm(vm: &VmConfig, profile: Option<&Profile>, problems: &mut Vec<Problem>) {
    for (weight, name) in [
        (&vm.vmq_weight, "vmq_weight"),
        (&vm.iov_weight, "iov_weight"),
    ] {
        range(weight, 0, 100, name, problems);
    }
    if let Some(profile) = profile
        && *vm.vmq_weight <= 100
        && *vm.iov_weight <= 100
        && let Err(error) = vm.settings().check(profile)
    {
        problem(problems, vm.name.at(), format!("{}: {error}", vm.name));
    }
    match &*vm.port {
        PortConfig::Generator(generator) => {
            if let Sizes::Fixed(size) = generator.sizes
                && !(64..=9000).contains(&size)
            {
                let message = format!("packets of {size} bytes; use 64 to 9000");
                problem(problems, vm.port.at(), message);
            }
            if generator.flows == 0 {
                let message = "0 flows; use 1 to 65535".to_owned();
                problem(problems, vm.port.at(), message);
            }
        }
        PortConfig::Pcap(pcap) if pcap.read.is_none() && pcap.write.is_none() => {
            let message = "a pcap port without `read` and `write` does nothing; use `sink`";
            problem(problems, vm.port.at(), message.to_owned());
        }
        _ => {}
    }
}

/// A cable has two ends.
fn check_cables(config: &Config, problems: &mut Vec<Problem>) {
    let mut cables: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for host in &config.hosts {
        if let PortConfig::Cable(cable) = &*host.uplink {
            let ends = cables.entry(&cable.name).or_default();
            ends.push(host.uplink.at());
        }
    }
    let names: Vec<&str> = cables.keys().copied().collect();
    for (name, ends) in &cables {
        let Some(last) = ends.last().filter(|_| ends.len() != 2) else {
            continue;
        };
        let others = names.iter().copied().filter(|other| other != name);
        let message = match ends.len() {
            1 => format!(
                "cable `{name}` has one end only; give it to the uplink of another host{}",
                hint(name, others)
            ),
            count => format!("cable `{name}` has {count} ends; a cable joins two hosts"),
        };
        problem(problems, *last, message);
    }
}

fn check_pairs(config: &Config, problems: &mut Vec<Problem>) {
    let vms: BTreeSet<String> = config
        .hosts
        .iter()
        .flat_map(|host| {
            host.vms
                .iter()
                .map(move |vm| format!("{}/{}", host.name, vm.name))
        })
        .collect();
    let mut paired = BTreeSet::new();
    for pair in &config.pairs {
        let at = pair.vms.at();
        for name in pair.vms.iter() {
            if !vms.contains(name) {
                let message = format!(
                    "vm `{name}` does not exist; write host/vm{}",
                    hint(name, vms.iter().map(String::as_str))
                );
                problem(problems, at, message);
            }
        }
        for name in pair.vms.iter() {
            if !paired.insert(name) {
                let message = format!("vm `{name}` is in a pair already");
                problem(problems, at, message);
            }
        }
        let [a, b] = &*pair.vms;
        if a.split('/').next() == b.split('/').next() {
            let message = "both are on the same host; a tunnel joins two hosts".to_owned();
            problem(problems, at, message);
        }
        match Suite::by_name(&pair.suite) {
            None => {
                let names = Suite::ALL.iter().map(|suite| suite.name);
                let message = format!(
                    "suite `{}` does not exist; docs/verify.md lists them{}",
                    pair.suite,
                    hint(&pair.suite, names)
                );
                problem(problems, pair.suite.at(), message);
            }
            Some(suite) if suite.xfrm().is_none() => {
                let message = format!(
                    "suite `{}` can not be written in the words of ip xfrm; use aes256gcm16",
                    suite.name
                );
                problem(problems, pair.suite.at(), message);
            }
            Some(_) => {}
        }
        if WindowSize::new(*pair.replay_window).is_none() {
            let message = format!("replay_window is {}; use 32 to 65536", pair.replay_window);
            problem(problems, pair.replay_window.at(), message);
        }
    }
}

fn unique<'a>(
    names: impl Iterator<Item = &'a Located<String>>,
    what: &str,
    problems: &mut Vec<Problem>,
) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.as_str()) {
            let message = format!("there is another {what} `{name}`; give it another name");
            problem(problems, name.at(), message);
        }
        let is_usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 63 || !name.chars().all(is_usable) {
            let message = format!(
                "`{}` is no name; use up to 63 letters, digits and - _ .",
                name.escape_debug()
            );
            problem(problems, name.at(), message);
        }
    }
}

fn range(value: &Located<u16>, least: u16, most: u16, name: &str, problems: &mut Vec<Problem>) {
    if !(least..=most).contains(&**value) {
        let message = format!("{name} is {value}; use {least} to {most}");
        problem(problems, value.at(), message);
    }
}

fn problem(problems: &mut Vec<Problem>, at: usize, message: String) {
    problems.push(Problem { at, message });
}

fn hint<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, names).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn plural(count: u16, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}
