//! Path-MTU arithmetic is exact to the byte.

use vesper_esp::{Buffer, Engine, Outbound, PacketBuf, Suite, Verdict, fragments};
use vesper_sa::{Direction, Mode, Timestamp};
use vesper_tests::{Carrier, params, sa, udp_packet};

fn seal(sa: &vesper_esp::EspSa, packet: &[u8]) -> (Verdict, usize) {
    let mut batch = [Outbound::new(sa, PacketBuf::from_packet(packet))];
    Engine::default().encapsulate(Timestamp::ZERO, &mut batch);
    (batch[0].verdict, batch[0].packet.data().len())
}

/// `overhead` says what the engine does, for every suite, mode, carrier and length.
#[test]
fn overhead_is_what_encapsulation_adds() {
    for suite in Suite::ALL {
        for mode in [Mode::Tunnel, Mode::Transport] {
            for carrier in Carrier::ALL {
                let sa = sa(params(Direction::Outbound, mode, carrier), suite, 1);
                for payload in 0..70 {
                    let packet = udp_packet(carrier.v6, payload);
                    let header = match mode {
                        Mode::Tunnel => 0,
                        Mode::Transport => packet.len() - 8 - payload,
                    };
                    let (verdict, len) = seal(&sa, &packet);
                    assert!(matches!(verdict, Verdict::Sealed { .. }));
                    let overhead = sa.context().overhead(packet.len() - header);
                    assert_eq!(len, packet.len() + overhead, "{suite} {mode:?} {carrier:?}");
                }
            }
        }
    }
}

/// The largest packet that `max_packet` allows passes, one byte more does not.
#[test]
fn max_packet_is_the_largest_that_fits() {
    for suite in Suite::ALL {
        for mode in [Mode::Tunnel, Mode::Transport] {
            for carrier in Carrier::ALL {
                for mtu in 1400..1420 {
                    let mut params = params(Direction::Outbound, mode, carrier);
                    params.mtu = Some(mtu);
                    let sa = sa(params, suite, 1);
                    let header = if carrier.v6 { 40 } else { 20 };
                    let max = sa.context().max_packet(mtu as usize, header).unwrap();
                    let (verdict, len) = seal(&sa, &udp_packet(carrier.v6, max - header - 8));
                    assert!(
                        matches!(verdict, Verdict::Sealed { .. }),
                        "{suite} {mode:?}"
                    );
                    assert!(len <= mtu as usize && len + suite.alignment > mtu as usize);
                    let (verdict, len) = seal(&sa, &udp_packet(carrier.v6, max - header - 7));
                    assert_eq!(verdict, Verdict::TooBig { mtu: max as u32 });
                    assert_eq!(len, max + 1, "untouched");
                }
            }
        }
    }
}

/// A packet that may be fragmented passes in pieces, each of which fits.
#[test]
fn fragments_before_encapsulation_fit() {
    let mut params = params(Direction::Outbound, Mode::Tunnel, Carrier::ALL[0]);
    params.mtu = Some(1500);
    let sa = sa(params, Suite::by_name("aes128-sha256").unwrap(), 1);
    let mut packet = udp_packet(false, 8000);
    packet[6] = 0;
    let (Verdict::TooBig { mtu }, _) = seal(&sa, &packet) else {
        panic!("not too big");
    };
    let mut pieces = 0;
    for part in fragments(&packet, mtu as usize).unwrap() {
        let mut piece = vec![0; part.len()];
        assert!(part.write_to(&mut piece));
        let (verdict, len) = seal(&sa, &piece);
        assert!(matches!(verdict, Verdict::Sealed { .. }));
        assert!(len <= 1500);
        pieces += 1;
    }
    assert_eq!(pieces, 6);
}

/// A path that leaves no room is refused when the association is made.
#[test]
fn a_tiny_mtu_is_refused() {
    let mut params = params(Direction::Outbound, Mode::Tunnel, Carrier::ALL[0]);
    params.mtu = Some(60);
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let cipher = vesper_tests::cipher(suite, 1, vesper_esp::aead::Implementation::RustCrypto);
    let error = vesper_esp::association(params, cipher, Timestamp::ZERO).unwrap_err();
    assert_eq!(error, vesper_esp::AssociationError::Mtu(60));
}
