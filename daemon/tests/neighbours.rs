//! Neighbours in front of ports: tunnel packets find their next hop, machines get answers, and
//! packets that are too big for a tunnel do not vanish.

use std::sync::{Arc, Mutex};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use vesper_daemon::neighbour::{
    CacheLimits, Edge, EdgeOptions, Message, Uplink, UplinkOptions, answer, question, read,
};
use vesper_daemon::port::{Incoming, Pool, Port, PortStatus};
use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::MacAddress;
use vesper_sa::Timestamp;

const HOST: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const VM: MacAddress = MacAddress([2, 0, 0, 0, 0, 3]);

/// The other end of a port under test.
#[derive(Clone, Debug, Default)]
struct Wire(Arc<Mutex<Ends>>);

#[derive(Debug, Default)]
struct Ends {
    inward: Vec<Vec<u8>>,
    outward: Vec<Vec<u8>>,
}

impl Wire {
    fn put(&self, frame: &[u8]) {
        self.0.lock().unwrap().inward.push(frame.to_vec());
    }

    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap().outward)
    }
}

impl Port for Wire {
    fn receive(
        &mut self,
        _: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let mut ends = self.0.lock().unwrap();
        let count = ends.inward.len().min(most);
        let frames = ends.inward.drain(..count);
        into.extend(frames.map(|frame| Incoming::new(pool.copy(&frame).unwrap())));
        count
    }

    fn send(&mut self, _: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        let mut ends = self.0.lock().unwrap();
        for frame in frames.drain(..) {
            ends.outward.push(frame.data().to_vec());
            pool.give(frame);
        }
    }

    fn status(&self) -> PortStatus {
        PortStatus::default()
    }
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos((1000 + millis) * 1_000_000)
}

/// A tunnel packet that has no next hop yet.
fn esp(destination: [u8; 4]) -> Vec<u8> {
    let mut frame = [HOST.0, HOST.0].concat();
    frame.extend([8, 0]);
    let header = etherparse::Ipv4Header::new(
        40,
        64,
        etherparse::IpNumber(50),
        [192, 0, 2, 1],
        destination,
    );
    frame.extend(header.unwrap().to_bytes());
    frame.extend([7; 40]);
    frame
}

struct UplinkBed {
    wire: Wire,
    pool: Pool,
    port: Uplink,
}

impl UplinkBed {
    fn new(gateway: Option<[u8; 4]>) -> Self {
        let wire = Wire::default();
        let options = UplinkOptions {
            address: [192, 0, 2, 1].into(),
            mac: HOST,
            gateway: gateway.map(Into::into),
        };
        let port = Uplink::new(Box::new(wire.clone()), options, CacheLimits::default());
        Self {
            wire,
            pool: Pool::new(1024, 1518),
            port,
        }
    }

    fn send(&mut self, millis: u64, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut frames: Vec<_> = frames
            .iter()
            .map(|frame| self.pool.copy(frame).unwrap())
            .collect();
        self.port.send(at(millis), &mut self.pool, &mut frames);
        assert!(frames.is_empty());
        self.wire.take()
    }

    /// What comes through to the node.
    fn hear(&mut self, millis: u64, frame: &[u8]) -> usize {
        self.wire.put(frame);
        let mut into = Vec::new();
        let count = self.port.receive(at(millis), &mut self.pool, 64, &mut into);
        into.drain(..).for_each(|i| self.pool.give(i.frame));
        count
    }
}

#[test]
fn packets_wait_for_their_next_hop_and_go_in_order() {
    for gateway in [None, Some([192, 0, 2, 254])] {
        let mut bed = UplinkBed::new(gateway);
        let hop = gateway.unwrap_or([192, 0, 2, 9]);
        let frames: Vec<_> = (0..5u8)
            .map(|n| {
                let mut frame = esp([192, 0, 2, 9]);
                frame[40] = n;
                frame
            })
            .collect();
        // Only the question goes out.
        let sent = bed.send(0, &frames[..4]);
        assert_eq!(sent.len(), 1);
        let expected = Message::Question {
            target: hop.into(),
            asker: Some(([192, 0, 2, 1].into(), HOST)),
        };
        assert_eq!(read(&sent[0]).unwrap().message, expected);
        let asker = Some(([192, 0, 2, 1].into(), HOST));
        let reply = answer(hop.into(), ROUTER, asker, None).unwrap();
        assert_eq!(bed.hear(10, &reply), 0, "not for the node");
        let mut sent = bed.wire.take();
        sent.extend(bed.send(11, &frames[4..]));
        assert_eq!(sent.len(), 5);
        for (n, frame) in sent.iter().enumerate() {
            assert_eq!(frame[..6], ROUTER.0);
            assert_eq!(frame[6..12], HOST.0);
            assert_eq!(usize::from(frame[40]), n);
        }
        assert_eq!(bed.pool.free(), 1024);
    }
}

#[test]
fn nobody_answers_and_nothing_is_kept() {
    let mut bed = UplinkBed::new(None);
    let frames = vec![esp([192, 0, 2, 9]); 300];
    assert_eq!(bed.send(0, &frames).len(), 1);
    // More than may wait.
    assert_eq!(bed.port.status().dropped, 300 - 256);
    for millis in (0..5000).step_by(50) {
        bed.hear(millis, &[0; 60]);
    }
    assert_eq!(bed.wire.take().len(), 2, "two more questions");
    assert_eq!(bed.port.status().dropped, 300);
    assert_eq!(bed.pool.free(), 1024);
}

#[test]
fn the_tunnel_address_is_ours_and_frames_with_a_next_hop_stay_as_they_are() {
    let mut bed = UplinkBed::new(None);
    let asker = ([192, 0, 2, 9].into(), ROUTER);
    let ask = question(asker, [192, 0, 2, 1].into(), None, None).unwrap();
    assert_eq!(bed.hear(100, &ask), 0);
    let answered = bed.wire.take();
    let expected = Message::Answer {
        address: [192, 0, 2, 1].into(),
        mac: HOST,
    };
    assert_eq!(read(&answered[0]).unwrap().message, expected);
    // A question for somebody else is for the machines.
    let ask = question(asker, [192, 0, 2, 7].into(), None, None).unwrap();
    assert_eq!(bed.hear(200, &ask), 1);
    assert!(bed.wire.take().is_empty());
    let mut known = esp([192, 0, 2, 9]);
    known[..6].copy_from_slice(&VM.0);
    assert_eq!(bed.send(300, std::slice::from_ref(&known)), [known]);
    // A flood of questions gets a bounded number of answers.
    let ask = question(asker, [192, 0, 2, 1].into(), None, None).unwrap();
    for _ in 0..1000 {
        bed.hear(400, &ask);
    }
    assert!(bed.wire.take().len() <= 32);
    assert_eq!(bed.pool.free(), 1024);
}

fn edge(tunnel_mtu: Option<u16>, clamp: bool) -> (Wire, Pool, Edge) {
    let wire = Wire::default();
    let options = EdgeOptions {
        mac: HOST,
        answers: true,
        tunnel_mtu,
        clamp,
    };
    let port = Edge::new(Box::new(wire.clone()), options);
    (wire, Pool::new(256, 9018), port)
}

fn through(port: &mut Edge, pool: &mut Pool, millis: u64) -> Vec<Vec<u8>> {
    let mut into = Vec::new();
    port.receive(at(millis), pool, 64, &mut into);
    let frames = into.iter().map(|i| i.frame.data().to_vec()).collect();
    into.drain(..).for_each(|i| pool.give(i.frame));
    frames
}

#[test]
fn a_machine_finds_the_host_at_every_address_but_its_own() {
    let (wire, mut pool, mut port) = edge(None, false);
    for (own, peer) in [("10.0.1.1", "10.0.1.2"), ("fd00::1", "fd00::2")] {
        let (own, peer) = (own.parse().unwrap(), peer.parse().unwrap());
        wire.put(&question((own, VM), peer, None, None).unwrap());
        assert!(through(&mut port, &mut pool, 0).is_empty());
        let answered = wire.take();
        let expected = Message::Answer {
            address: peer,
            mac: HOST,
        };
        assert_eq!(read(&answered[0]).unwrap().message, expected);
        assert_eq!(answered[0][..6], VM.0);
        // Announces itself, or looks for its own address: silence.
        wire.put(&question((own, VM), own, None, None).unwrap());
        assert!(through(&mut port, &mut pool, 0).is_empty());
        assert!(wire.take().is_empty());
    }
    let ask = question(
        ("10.0.1.1".parse().unwrap(), VM),
        "10.0.1.2".parse().unwrap(),
        None,
        None,
    );
    let ask = ask.unwrap();
    for _ in 0..1000 {
        wire.put(&ask);
        through(&mut port, &mut pool, 50);
    }
    assert!(wire.take().len() <= 100);
    through(&mut port, &mut pool, 500);
    wire.put(&ask);
    through(&mut port, &mut pool, 500);
    assert_eq!(wire.take().len(), 1, "later again");
}

#[test]
fn packets_too_big_for_the_tunnel_are_cut_or_answered() {
    let (wire, mut pool, mut port) = edge(Some(1400), false);
    let build = || PacketBuilder::ethernet2(VM.0, HOST.0).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut frame = Vec::new();
    build().udp(1, 2).write(&mut frame, &[5; 3000]).unwrap();
    // etherparse sets DF; this one may be cut.
    let mut may = frame.clone();
    may[20] &= !0x40;
    let sum = vesper_esp::wire::Checksum::new().bytes(&may[14..24]);
    let sum = sum.bytes(&may[26..34]).finish();
    may[24..26].copy_from_slice(&sum.to_be_bytes());
    wire.put(&may);
    let fragments = through(&mut port, &mut pool, 0);
    assert_eq!(fragments.len(), 3);
    let mut payload = Vec::new();
    for fragment in &fragments {
        assert!(fragment.len() - 14 <= 1400);
        let headers = PacketHeaders::from_ethernet_slice(fragment).unwrap();
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else {
            panic!("no IPv4")
        };
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.fragment_offset.value()) * 8, payload.len());
        payload.extend_from_slice(&fragment[34..]);
    }
    assert_eq!(payload, may[34..]);

    wire.put(&frame);
    assert!(through(&mut port, &mut pool, 0).is_empty());
    let answered = wire.take();
    assert_eq!(answered.len(), 1);
    let headers = PacketHeaders::from_ethernet_slice(&answered[0]).unwrap();
    let Some(TransportHeader::Icmpv4(icmp)) = headers.transport else {
        panic!("no ICMP")
    };
    let etherparse::Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
    ) = icmp.icmp_type
    else {
        panic!("{icmp:?}")
    };
    assert_eq!(next_hop_mtu, 1400);
    assert_eq!(answered[0][..6], VM.0);
    assert_eq!(port.status().dropped, 1);

    // IPv6 is never cut.
    let mut frame = Vec::new();
    let build = PacketBuilder::ethernet2(VM.0, HOST.0).ipv6([1; 16], [2; 16], 64);
    build.udp(1, 2).write(&mut frame, &[5; 1400]).unwrap();
    wire.put(&frame);
    assert!(through(&mut port, &mut pool, 0).is_empty());
    let answered = wire.take();
    assert_eq!((answered[0][20], answered[0][54]), (58, 2));
    // What fits passes untouched.
    let mut fits = Vec::new();
    let build = PacketBuilder::ethernet2(VM.0, HOST.0).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    build.udp(1, 2).write(&mut fits, &[5; 1372]).unwrap();
    wire.put(&fits);
    assert_eq!(through(&mut port, &mut pool, 0), [fits]);
    assert_eq!(pool.free(), 256);
}

#[test]
fn connections_agree_upon_segments_that_fit() {
    let (wire, mut pool, mut port) = edge(Some(1400), true);
    let syn = |v6: bool, mss: u16, padding: bool| {
        let link = PacketBuilder::ethernet2(VM.0, HOST.0);
        let ip = match v6 {
            false => link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            true => link.ipv6([1; 16], [2; 16], 64),
        };
        use etherparse::TcpOptionElement::{MaximumSegmentSize, Noop};
        let options: &[_] = match padding {
            true => &[Noop, MaximumSegmentSize(mss)],
            false => &[MaximumSegmentSize(mss)],
        };
        let mut frame = Vec::new();
        let tcp = ip.tcp(1, 2, 3, 4).syn().options(options).unwrap();
        tcp.write(&mut frame, &[]).unwrap();
        frame
    };
    for (v6, padding) in [(false, false), (false, true), (true, false), (true, true)] {
        let most = if v6 { 1340 } else { 1360 };
        for mss in [536, most, most + 1, 1460, 65535] {
            let right = syn(v6, mss.min(most), padding);
            wire.put(&syn(v6, mss, padding));
            assert_eq!(
                through(&mut port, &mut pool, 0),
                std::slice::from_ref(&right)
            );
            let mut frames = vec![pool.copy(&syn(v6, mss, padding)).unwrap()];
            port.send(at(0), &mut pool, &mut frames);
            assert_eq!(wire.take(), [right]);
        }
    }
    // Options that make no sense do no harm.
    let mut wrong = syn(false, 1460, false);
    for size in [0, 1, 3, 255] {
        wrong[55] = size;
        wire.put(&wrong);
        assert_eq!(through(&mut port, &mut pool, 0), [wrong.clone()]);
    }
}
