//! How VPP is configured for a case: what it is started with, the commands that make tunnels,
//! and the packets that it generates.
//!
//! A packet goes from the generator (`pg0`) by its destination to the interface of its
//! association, through the tunnel into one end of a pipe and out of the other, to the
//! association that opens it, and by another routing table to a sink (`pg1`).

use std::path::Path;

use vesper_esp::{Encryption, Suite};

use crate::case::{Case, PACKETS, Size};

/// Bytes of a packet that fit in one of VPP's buffers (2,048) with the headers of the tunnel.
const LARGEST: usize = 1900;
/// Associations: two each, and an interface.
const MOST_SAS: usize = 16_384;
/// Packets of the anti-replay window.
const WINDOW: usize = 1024;
/// The interface that packets leave by when they are open.
pub(super) const SINK: &str = "pg1";

/// Why VPP does not take part in a case.
pub(super) fn obstacle(case: &Case) -> Option<String> {
    if algorithms(case.suite).is_none() {
        return Some("its native engine does not have the suite".into());
    }
    if matches!(case.size, Size::Bytes(bytes) if bytes > LARGEST) {
        return Some(format!(
            "packets above {LARGEST} bytes need several buffers"
        ));
    }
    (case.sas > MOST_SAS).then(|| format!("more than {MOST_SAS} tunnels take too long to make"))
}

/// The start-up configuration: no worker, all on one core. Everything that VPP writes goes to
/// `directory`.
pub(super) fn configuration(directory: &Path, huge_pages: bool, cpu: usize) -> String {
    let directory = directory.display();
    let page = if huge_pages {
        "default-hugepage"
    } else {
        "default"
    };
    format!(
        "unix {{ interactive nodaemon cli-no-banner cli-no-pager runtime-dir {directory} \
         log {directory}/vpp.log }}\n\
         cpu {{ main-core {cpu} }}\n\
         api-segment {{ prefix vesper-bench-{id} }}\n\
         statseg {{ socket-name {directory}/stats.sock }}\n\
         memory {{ main-heap-size 512M main-heap-page-size {page} }}\n\
         buffers {{ page-size {page} }}\n",
        id = std::process::id(),
    )
}

/// The commands that make interfaces, tunnels and the stream of `packets` packets for each time
/// that it is enabled.
pub(super) fn commands(case: &Case, packets: usize, capture: &Path) -> Vec<String> {
    let mut commands: Vec<_> = [
        "create packet-generator interface pg0 mode ip4",
        "create packet-generator interface pg1 mode ip4",
        "pipe create",
        "ip table add 1",
        "ip table add 2",
        "set interface ip table pipe0.1 2",
        "set interface ip table pg1 1",
        "set interface ip address pg0 10.1.0.254/16",
        "set interface ip address pg1 10.3.0.1/16",
        "set interface ip address pipe0.0 10.0.0.1/24",
        "set interface ip address pipe0.1 10.0.0.2/24",
        "set interface state pg0 up",
        "set interface state pg1 up",
        "set interface state pipe0 up",
        "set interface state pipe0.0 up",
        "set interface state pipe0.1 up",
        "set ip neighbor static pipe0.0 10.0.0.2 02:00:00:00:00:02",
        "ip route add 10.2.0.0/16 table 1 via pg1",
    ]
    .map(String::from)
    .into();
    for index in 0..case.sas {
        commands.extend(tunnel(case, index));
    }
    commands.push(format!(
        "packet-generator new name packets limit {packets} source pg0 node ip4-input pcap {}",
        capture.display()
    ));
    commands
}

/// The commands that make an association, its other end, and the way to both.
fn tunnel(case: &Case, index: usize) -> [String; 8] {
    let (key, auth_key) = case.keys(index);
    let (key, salt) = key.split_at(case.suite.key_len);
    let (encryption, integrity) = algorithms(case.suite).unwrap_or_default();
    let mut keys = format!("crypto-alg {encryption} crypto-key {}", hex(key));
    if !salt.is_empty() {
        keys += &format!(" salt 0x{}", hex(salt));
    }
    if !auth_key.is_empty() {
        keys += &format!(" integ-alg {integrity} integ-key {}", hex(&auth_key));
    }
    let sa = format!(
        "spi {} esp {keys} tunnel src 10.0.0.1 dst 10.0.0.2 use-esn",
        0x1000 + index
    );
    let [outbound, inbound] = [2 * index + 1, 2 * index + 2];
    let [.., high, low] = destination(index);
    [
        format!("ipsec itf create instance {index}"),
        format!("ipsec sa add {outbound} {sa}"),
        format!("ipsec sa add {inbound} {sa} inbound anti-replay-size {WINDOW}"),
        format!("ipsec tunnel protect ipsec{index} sa-in {inbound} sa-out {outbound}"),
        format!("set interface ip table ipsec{index} 1"),
        format!("enable ip4 interface ipsec{index}"),
        format!("set interface state ipsec{index} up"),
        format!("ip route add 10.2.{high}.{low}/32 via ipsec{index}"),
    ]
}

/// What VPP calls the encryption and the integrity of a suite; `None` for suites that its native
/// engine does not have.
fn algorithms(suite: &Suite) -> Option<(String, &'static str)> {
    let bits = 8 * suite.key_len;
    match (suite.encryption, suite.icv_len, suite.name) {
        (Encryption::AesGcm, 16, _) => Some((format!("aes-gcm-{bits}"), "none")),
        (Encryption::AesCbc, 16, name) if name.ends_with("-sha256") => {
            Some((format!("aes-cbc-{bits}"), "sha-256-128"))
        }
        _ => None,
    }
}

/// The packets of a case as a capture file of IP packets, which VPP sends again and again.
pub(super) fn capture(case: &Case) -> Vec<u8> {
    let order = case.order();
    let lengths = case.size.lengths();
    let mut file = Vec::new();
    // The header of a capture file: versions, no shift of time, longest packet, raw IP.
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0xffff, 101] {
        file.extend(u32::to_le_bytes(word));
    }
    for index in 0..packets(case) {
        let length = lengths[index % PACKETS];
        for word in [0, index as u32, length as u32, length as u32] {
            file.extend(u32::to_le_bytes(word));
        }
        let start = file.len();
        file.resize(start + length, 0);
        let packet = &mut file[start..];
        case.write_inner(index % PACKETS, packet);
        readdress(packet, destination(order[index % case.sas] as usize));
    }
    file
}

/// Packets of the capture: whole passes, and each association at least once.
fn packets(case: &Case) -> usize {
    case.sas.next_multiple_of(PACKETS)
}

/// The packets of a capture file, each from its IP header.
pub(super) fn captured(file: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some((header, body)) = rest.split_first_chunk::<16>() {
        let [.., a, b, c, d, _, _, _, _] = *header;
        let Some((packet, after)) =
            body.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)
        else {
            break;
        };
        packets.push(packet);
        rest = after;
    }
    packets
}

/// The address that leads to the tunnel of an association.
fn destination(index: usize) -> [u8; 4] {
    let [.., high, low] = index.to_be_bytes();
    [10, 2, high, low]
}

/// Gives an IPv4 packet with a header of 20 bytes another destination.
fn readdress(packet: &mut [u8], to: [u8; 4]) {
    packet[16..20].copy_from_slice(&to);
    packet[10..12].fill(0);
    let words = packet[..20].chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Level;

    fn case(suite: &str, size: Size, sas: usize) -> Case {
        Case {
            level: Level::Esp,
            suite: Suite::by_name(suite).unwrap(),
            size,
            sas,
        }
    }

    #[test]
    fn every_association_has_a_tunnel_and_its_own_destination() {
        let case = case("aes256gcm16", Size::Imix, 300);
        let commands = commands(&case, 8192, Path::new("/tmp/packets.pcap"));
        let count = |what: &str| commands.iter().filter(|line| line.contains(what)).count();
        assert_eq!(count("ipsec sa add"), 600);
        assert_eq!(count("inbound anti-replay-size 1024"), 300);
        assert_eq!(count("ip route add 10.2.1.43/32 via ipsec299"), 1);
        let (key, _) = case.keys(299);
        assert_eq!(count(&hex(&key[..32])), 2);
        assert!(commands.last().unwrap().contains("limit 8192"));
    }

    #[test]
    fn a_capture_holds_the_packets_of_the_case() {
        let case = case("aes256gcm16", Size::Imix, 1500);
        let file = capture(&case);
        let packets = captured(&file);
        assert_eq!(packets.len(), 2048);
        let order = case.order();
        for (index, packet) in packets.iter().enumerate() {
            let mut expected = vec![0; packet.len()];
            case.write_inner(index % PACKETS, &mut expected);
            assert_eq!(packet[20..], expected[20..]);
            let number = order[index % 1500] as usize;
            assert_eq!(packet[16..20], [10, 2, (number >> 8) as u8, number as u8]);
            // RFC 1071: with its checksum, a header adds up to zero.
            let sum: u32 = packet[..20]
                .chunks(2)
                .map(|word| u32::from(word[0]) * 256 + u32::from(word[1]))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
        assert_eq!(captured(&file[..file.len() - 1]).len(), 2047);
    }

    #[test]
    fn what_it_can_not_do_is_said() {
        assert_eq!(obstacle(&case("aes128gcm16", Size::Imix, 1024)), None);
        assert_eq!(obstacle(&case("aes256-sha256", Size::Bytes(64), 1)), None);
        for (suite, size, sas, why) in [
            ("chacha20poly1305", Size::Imix, 1, "suite"),
            ("aes256gcm16", Size::Bytes(4096), 1, "1900 bytes"),
            ("aes256gcm16", Size::Imix, 1_000_000, "tunnels"),
        ] {
            let obstacle = obstacle(&case(suite, size, sas)).unwrap();
            assert!(obstacle.contains(why), "{obstacle}");
        }
    }
}
