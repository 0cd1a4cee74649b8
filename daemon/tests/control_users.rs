//! Users that the configuration names, and others, on the sockets of a real vesperd.

mod process;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use process::{Daemon, head, host, machine, wait_until};

/// Users that every system has: `daemon`, `bin` and `nobody`.
const DAEMON: u32 = 1;
const BIN: u32 = 2;
const NOBODY: u32 = 65534;

/// How `vesper` ends for a user without groups, and what it says.
fn vesper(user: u32, socket: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vesper"));
    command.arg("--socket").arg(socket).args(words);
    let output = command.uid(user).gid(user).output().unwrap();
    (output.status.code(), process::text(&output))
}

#[test]
fn who_is_named_gets_in_and_nobody_else() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let configuration = format!(
        "{}[control]\nusers = [\"nobody\"]\nvm_users = [{DAEMON}]\n{}{}",
        head(path),
        host(1, "\"loopback\"", ""),
        machine(1, 1, "\"sink\"", "")
    );
    let daemon = Daemon::start(path, &configuration);
    let (all, own) = (path.join("control.sock"), path.join("vm/a/vm1.sock"));
    wait_until("the machine has its socket", || own.exists());

    let (status, text) = vesper(NOBODY, &all, &["vm", "list"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("vm1"), "{text}");
    let (status, text) = vesper(DAEMON, &own, &["sa", "list"]);
    assert_eq!(status, Some(0), "{text}");

    for (user, socket, words) in [
        (BIN, &all, ["vm", "list"]),
        (DAEMON, &all, ["vm", "list"]),
        (BIN, &own, ["sa", "list"]),
        (NOBODY, &own, ["sa", "list"]),
    ] {
        let (status, text) = vesper(user, socket, &words);
        // docs/control.md: not permitted.
        assert_eq!(status, Some(5), "{user} {text}");
        assert!(text.contains(&format!("user {user} may not use")), "{text}");
    }
    // Whom the socket of a machine is for, gets nothing else there.
    let (status, text) = vesper(DAEMON, &own, &["vm", "list"]);
    assert_eq!(status, Some(4), "{text}");
    assert!(daemon.stop().0);
}

/// Nobody is named: the file system keeps all others out.
#[test]
fn without_names_the_sockets_are_closed() {
    let directory = tempfile::tempdir().unwrap();
    let configuration =
        head(directory.path()) + &host(1, "\"loopback\"", "") + &machine(1, 1, "\"sink\"", "");
    let daemon = Daemon::start(directory.path(), &configuration);
    let mode = fs::metadata(daemon.socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(daemon.stop().0);
}
