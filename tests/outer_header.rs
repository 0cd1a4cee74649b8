//! The outer header says what RFC 4301 and RFC 6040 want, as read by a second parser.

use etherparse::{IpNumber, Ipv6Header, Ipv6RawExtHeader, NetSlice, SlicedPacket, TransportSlice};
use vesper_esp::{Buffer, DropReason, Engine, EspSa, Inbound, Outbound, PacketBuf, Suite, Verdict};
use vesper_sa::{Df, Direction, Dscp, Ecn, Mode, SaParams, Selector, Timestamp, TunnelHeader};
use vesper_tests::{Carrier, params, sa, udp_packet};

const NOW: Timestamp = Timestamp::ZERO;
const V4: Carrier = Carrier {
    v6: false,
    udp: false,
};
const V6: Carrier = Carrier {
    v6: true,
    udp: false,
};

fn gcm() -> &'static Suite {
    Suite::by_name("aes128gcm16").unwrap()
}

fn seal(sa: &EspSa, packet: &[u8]) -> (Verdict, PacketBuf) {
    let mut batch = [Outbound::new(sa, PacketBuf::from_packet(packet))];
    Engine::default().encapsulate(NOW, &mut batch);
    let [entry] = batch;
    (entry.verdict, entry.packet)
}

fn open(sa: &EspSa, packet: PacketBuf) -> (Verdict, PacketBuf) {
    let mut batch = [Inbound::new(packet)];
    Engine::default().decapsulate(NOW, &|_, _| Some(sa), &mut batch);
    let [entry] = batch;
    (entry.verdict, entry.packet)
}

fn tunnel(carrier: Carrier, tunnel: TunnelHeader) -> SaParams {
    SaParams {
        tunnel,
        ..params(Direction::Outbound, Mode::Tunnel, carrier)
    }
}

/// Sets the traffic class and the don't-fragment bit of a packet, checksum included.
fn mark(packet: &mut [u8], class: u8, df: bool) {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
        packet[6] = if df { 0x40 } else { 0 };
        packet[10..12].fill(0);
        let sum = vesper_esp::wire::Checksum::new()
            .bytes(&packet[..20])
            .finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = class << 4 | 0xb;
        packet[2..4].copy_from_slice(&[0xcd, 0xef]);
    }
}

/// Traffic class, don't-fragment bit, hop limit, flow label, checked by etherparse.
fn outer(packet: &[u8]) -> (u8, bool, u8, u32) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            assert_eq!(usize::from(header.total_len), packet.len());
            let class = header.dscp.value() << 2 | header.ecn.value();
            (class, header.dont_fragment, header.time_to_live, 0)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length) + 40, packet.len());
            (
                header.traffic_class,
                true,
                header.hop_limit,
                header.flow_label.value(),
            )
        }
        NetSlice::Arp(_) => panic!("not IP"),
    }
}

/// Every value of DSCP and ECN, every choice, every mix of versions.
#[test]
fn traffic_class_hop_limit_and_df() {
    for carrier in [V4, V6] {
        for inner_v6 in [false, true] {
            for class in 0..=255 {
                for inner_df in [false, true] {
                    for (dscp, ecn, df) in [
                        (Dscp::Copy, Ecn::Normal, Df::Copy),
                        (Dscp::Set(46), Ecn::Compatibility, Df::Set),
                        (Dscp::Set(0), Ecn::Off, Df::Clear),
                    ] {
                        let header = TunnelHeader {
                            dscp,
                            ecn,
                            df,
                            hop_limit: 99,
                            decrement_hop_limit: false,
                            copy_flow_label: df == Df::Copy,
                        };
                        let sa = sa(tunnel(carrier, header), gcm(), 1);
                        let mut packet = udp_packet(inner_v6, 10);
                        mark(&mut packet, class, inner_df);
                        let (verdict, sealed) = seal(&sa, &packet);
                        assert!(matches!(verdict, Verdict::Sealed { .. }));
                        let expected_class = match (dscp, ecn) {
                            (Dscp::Copy, Ecn::Normal) => class,
                            (Dscp::Set(value), _) => value << 2,
                            (Dscp::Copy, _) => class & 0xfc,
                        };
                        let expected_df = carrier.v6
                            || match df {
                                Df::Copy => inner_df || inner_v6,
                                Df::Set => true,
                                Df::Clear => false,
                            };
                        let label = if carrier.v6 && inner_v6 && df == Df::Copy {
                            0xbcdef
                        } else {
                            0
                        };
                        assert_eq!(
                            outer(sealed.data()),
                            (expected_class, expected_df, 99, label)
                        );
                    }
                }
            }
        }
    }
}

/// A gateway takes one off the hop limit; what has none left is not forwarded.
#[test]
fn the_inner_hop_limit_is_decremented_on_request() {
    for inner_v6 in [false, true] {
        let header = TunnelHeader {
            decrement_hop_limit: true,
            ..TunnelHeader::default()
        };
        let sender = sa(tunnel(V4, header), gcm(), 1);
        let receiver = sa(params(Direction::Inbound, Mode::Tunnel, V4), gcm(), 1);
        let mut packet = udp_packet(inner_v6, 10);
        let (_, sealed) = seal(&sender, &packet);
        let (verdict, opened) = open(&receiver, sealed);
        assert!(matches!(verdict, Verdict::Opened(_)));
        assert_eq!(outer(opened.data()).2, 60);

        packet[if inner_v6 { 7 } else { 8 }] = 1;
        let (verdict, _) = seal(&sender, &packet);
        assert_eq!(verdict, Verdict::Drop(DropReason::OutHopLimit));
    }
}

/// Marks that a packet met inside the tunnel reach the receiver, with a right checksum; with
/// congestion notification off the inner packet is as it was encrypted.
#[test]
fn congestion_marks_leave_the_tunnel() {
    for inner_v6 in [false, true] {
        for carrier in [V4, V6] {
            for (inner, on_the_way, ecn, expected) in [
                (0xb8 | 2, 3, Ecn::Normal, Some(0xb8 | 3)),
                (0xb8 | 1, 3, Ecn::Compatibility, Some(0xb8 | 3)),
                (0xb8 | 2, 1, Ecn::Normal, Some(0xb8 | 1)),
                (0xb8, 3, Ecn::Normal, None),
                (0xb8, 3, Ecn::Off, Some(0xb8)),
                (0xb8 | 2, 3, Ecn::Off, Some(0xb8 | 2)),
            ] {
                let sender = sa(tunnel(carrier, TunnelHeader::default()), gcm(), 1);
                let mut params = params(Direction::Inbound, Mode::Tunnel, carrier);
                params.tunnel.ecn = ecn;
                let receiver = sa(params, gcm(), 1);
                let mut packet = udp_packet(inner_v6, 10);
                mark(&mut packet, inner, false);
                let (_, mut sealed) = seal(&sender, &packet);
                mark(sealed.data_mut(), on_the_way, false);
                let (verdict, opened) = open(&receiver, sealed);
                match expected {
                    Some(class) => {
                        assert!(matches!(verdict, Verdict::Opened(_)));
                        assert_eq!(outer(opened.data()).0, class);
                    }
                    None => assert_eq!(verdict, Verdict::Drop(DropReason::Congestion)),
                }
            }
        }
    }
}

/// Over IPv4 the UDP checksum is zero, over IPv6 it is right.
#[test]
fn udp_checksum() {
    for carrier in Carrier::ALL.into_iter().filter(|carrier| carrier.udp) {
        let sa = sa(params(Direction::Outbound, Mode::Tunnel, carrier), gcm(), 1);
        for payload in 0..20 {
            let (_, sealed) = seal(&sa, &udp_packet(false, payload));
            let sliced = SlicedPacket::from_ip(sealed.data()).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else {
                panic!("not UDP");
            };
            assert_eq!(usize::from(udp.length()), udp.slice().len());
            match sliced.net.unwrap() {
                NetSlice::Ipv6(ip) => assert_eq!(
                    udp.to_header()
                        .calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                    Ok(udp.checksum())
                ),
                _ => assert_eq!(udp.checksum(), 0),
            }
        }
    }
}

/// In transport mode ESP follows hop-by-hop and routing headers; destination options stay in
/// front only where a routing header follows them. IPv4 options stay.
#[test]
fn extension_headers_in_transport_mode() {
    const HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const OPTIONS: u8 = 60;
    for (chain, in_front) in [
        (&[][..], 0),
        (&[HOP], 1),
        (&[OPTIONS], 0),
        (&[HOP, OPTIONS], 1),
        (&[HOP, OPTIONS, ROUTING], 3),
        (&[HOP, OPTIONS, ROUTING, OPTIONS], 3),
        (&[ROUTING, OPTIONS], 1),
    ] {
        let mut packet = Vec::new();
        let header = Ipv6Header {
            payload_length: (chain.len() * 16 + 12) as u16,
            next_header: IpNumber(chain.first().copied().unwrap_or(17)),
            hop_limit: 9,
            ..Ipv6Header::default()
        };
        packet.extend(header.to_bytes());
        for index in 0..chain.len() {
            let next = chain.get(index + 1).copied().unwrap_or(17);
            let raw = Ipv6RawExtHeader::new_raw(IpNumber(next), &[1; 14]).unwrap();
            packet.extend(raw.to_bytes());
        }
        packet.extend([0, 7, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4]);
        let sender = sa(params(Direction::Outbound, Mode::Transport, V6), gcm(), 1);
        // The selector sees the ports past whatever stands behind ESP.
        let mut receiving = params(Direction::Inbound, Mode::Transport, V6);
        receiving.selectors = vec![Selector {
            protocol: Some(17),
            source_port: Some(7..=7),
            destination_port: Some(9..=9),
            ..Selector::default()
        }];
        let receiver = sa(receiving, gcm(), 1);
        let (verdict, sealed) = seal(&sender, &packet);
        assert!(matches!(verdict, Verdict::Sealed { .. }));
        let spi_at = sealed
            .data()
            .windows(4)
            .position(|window| window == [0, 0, 0x10, 0]);
        assert_eq!(spi_at, Some(40 + in_front * 16), "{chain:?}");
        let (verdict, opened) = open(&receiver, sealed);
        assert!(matches!(verdict, Verdict::Opened(_)), "{verdict:?}");
        assert_eq!(opened.data(), packet);
    }
}

/// Transport mode carries whole datagrams only, and only those of its IP version.
#[test]
fn transport_mode_refuses_fragments() {
    let sa = sa(params(Direction::Outbound, Mode::Transport, V4), gcm(), 1);
    let mut packet = udp_packet(false, 100);
    packet[6] = 0x20;
    let (verdict, _) = seal(&sa, &packet);
    assert_eq!(verdict, Verdict::Drop(DropReason::OutMalformed));
    let (verdict, _) = seal(&sa, &udp_packet(true, 100));
    assert_eq!(verdict, Verdict::Drop(DropReason::OutMalformed));
}

/// Link padding behind the packet is not carried.
#[test]
fn link_padding_is_cut() {
    let sender = sa(params(Direction::Outbound, Mode::Tunnel, V4), gcm(), 1);
    let receiver = sa(params(Direction::Inbound, Mode::Tunnel, V4), gcm(), 1);
    let packet = udp_packet(false, 1);
    let mut padded = packet.clone();
    padded.resize(46, 0);
    let (_, mut sealed) = seal(&sender, &padded);
    assert!(sealed.grow_back(13), "padding of the outer frame");
    let (verdict, opened) = open(&receiver, sealed);
    assert!(matches!(verdict, Verdict::Opened(_)));
    assert_eq!(opened.data(), packet);
}
