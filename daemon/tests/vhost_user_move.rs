//! A machine that moves from one vhost-user socket to another while vesperd runs keeps its
//! associations, and their numbers go on.

mod front_end;
mod process;

use front_end::visits::frame;
use front_end::{FrontEnd, feature};
use hyper::Method;
use process::{Daemon, add, head, host, machine, sa, wait_until};
use serde_json::json;
use vesper_daemon::control::types;
use vhost::VhostBackend;

#[test]
fn a_machine_that_moves_between_sockets_keeps_its_associations() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = ["old.sock", "new.sock"].map(|name| directory.path().join(name));
    let port = |socket| format!("{{ vhost_user = {{ socket = {socket:?} }} }}");
    let configuration =
        head(directory.path()) + &host(1, "\"sink\"", &machine(1, 1, &port(&sockets[0]), ""));
    let daemon = Daemon::start(directory.path(), &configuration);
    let client = daemon.client();
    let id = add(&client, &sa(1, 1, "out", 0x1000, ""));
    let association = || -> types::Sa { client.get(&format!("/v1/sas/{id}")).unwrap() };
    let mut packet = frame(60);
    packet[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 1, 1, 1, 8, 0]);
    packet[14..34].copy_from_slice(&[
        0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    let mut sent = 0;
    // There and back again.
    for turn in 0..4 {
        if turn > 0 {
            let table = json!({ "port": { "vhost_user": { "socket": sockets[turn % 2] } } });
            let table = table.to_string();
            client
                .ask(Method::PATCH, "/v1/vms/a/vm1", table.as_bytes())
                .unwrap();
            // Nobody serves the old one any more.
            wait_until("the old socket goes", || !sockets[(turn + 1) % 2].exists());
        }
        let mut guest = FrontEnd::connect(&sockets[turn % 2], feature::USUAL);
        for _ in 0..=turn {
            guest.transmit(&[0; 12], &packet);
            sent += 1;
        }
        guest.kicks[1].write(1).unwrap();
        wait_until("the packets are sent", || association().packets >= sent);
        let found = association();
        assert_eq!((found.packets, found.sequence), (sent, sent), "{turn}");
        assert_eq!(found.state, "INSTALLED");
        guest.protocol.get_vring_base(1).unwrap();
    }
    let sas: types::Sas = client.get("/v1/sas").unwrap();
    assert_eq!(sas.sas.len(), 1);
    let (is_accounted, said) = daemon.stop();
    assert!(is_accounted, "{said}");
}
