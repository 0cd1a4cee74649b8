//! What a stopped vesperd finds again: machines and associations that were added by request, in
//! the state directory; and what its sockets and its anchor are told by the configuration.

mod process;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use hyper::Method;
use process::{Daemon, add, head, host, sa};
use serde_json::json;
use vesper_daemon::control::types;

const LOOPBACK: &str = "\"loopback\"";

fn names(daemon: &Daemon) -> Vec<(String, u32, String)> {
    let vms: types::Vms = daemon.client().get("/v1/vms").unwrap();
    let vms = vms.vms.into_iter();
    vms.map(|vm| (vm.name, vm.sas.limit, vm.mac)).collect()
}

#[test]
fn what_was_added_by_request_is_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = head(directory.path()) + &host(1, LOOPBACK, "");
    let daemon = Daemon::start(directory.path(), &configuration);
    assert_eq!(names(&daemon), []);
    for (name, mac) in [("vm1", "02:00:00:00:07:01"), ("vm2", "02:00:00:00:07:02")] {
        let body = json!({ "name": name, "mac": mac, "sa_limit": 5 }).to_string();
        let added = daemon.client();
        added.ask(Method::POST, "/v1/vms", body.as_bytes()).unwrap();
    }
    add(&daemon.client(), &sa(1, 1, "out", 0x4000, ""));
    let client = daemon.client();
    client.ask(Method::DELETE, "/v1/vms/a/vm2", &[]).unwrap();
    let before = names(&daemon);
    assert_eq!(before, [("vm1".into(), 5, "02:00:00:00:07:01".into())]);
    assert!(daemon.stop().0);

    let daemon = Daemon::start(directory.path(), &configuration);
    assert_eq!(names(&daemon), before);
    let sas: types::Sas = daemon.client().get("/v1/sas").unwrap();
    let found: Vec<_> = sas
        .sas
        .iter()
        .map(|sa| (sa.vm.as_deref(), &*sa.spi))
        .collect();
    assert_eq!(found, [(Some("vm1"), "0x00004000")]);
}

#[test]
fn an_anchor_elsewhere_notices_that_the_state_was_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let configuration = format!(
        "{}anchor = {:?}\n[control]\ngroup = \"daemon\"\n{}",
        head(directory.path()),
        at("anchor"),
        host(1, LOOPBACK, &process::machine(1, 1, LOOPBACK, ""))
    );
    let daemon = Daemon::start(directory.path(), &configuration);
    let socket = fs::metadata(daemon.socket()).unwrap();
    // Only root may give a socket to any group.
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            (socket.gid(), socket.permissions().mode() & 0o777),
            (1, 0o660)
        );
    } else {
        println!("group of the socket not tried: not root");
    }
    add(&daemon.client(), &sa(1, 1, "out", 0x4000, ""));
    assert!(daemon.stop().0);
    let copy = |from: &str, to: &str| {
        let mut command = Command::new("cp");
        let status = command.arg("-a").args([at(from), at(to)]).status();
        assert!(status.unwrap().success());
    };
    copy("state", "copy");
    let daemon = Daemon::start(directory.path(), &configuration);
    add(&daemon.client(), &sa(1, 1, "out", 0x4001, ""));
    assert!(daemon.stop().0);

    fs::remove_dir_all(at("state")).unwrap();
    copy("copy", "state");
    let daemon = Daemon::start(directory.path(), &configuration);
    let sas: types::Sas = daemon.client().get("/v1/sas").unwrap();
    let (_, said) = daemon.stop();
    assert_eq!(sas.sas.len(), 1, "{said}");
    assert!(sas.sas[0].needs_rekey.is_some(), "{said}");
}
