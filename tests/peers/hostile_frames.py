"""Everything around ESP: link layers, VLAN tags, other traffic, ports, SPIs, outer options."""

import struct
from dataclasses import replace

import capture
import esp
import wire
from capture import ETHERNET, LINUX_SLL, LINUX_SLL2, RAW, VLAN_TYPES, ethernet
from hostile import Case, Sender, association, frames, packet, without_replay
from wire import DEST_OPTIONS, ESP, HOP_BY_HOP, ROUTING, TCP, UDP


def cases(rng, quick):
    yield from _other_traffic(rng)
    yield from _udp(rng)
    yield from _links(rng)
    yield from _spis(rng)
    yield from _carriers()
    yield from _outer_headers()
    yield from _short_esp(rng)


def _other_traffic(rng):
    sa = association()
    sender = Sender(sa)
    source, destination = sa.source, sa.destination
    v6 = association(carrier="v6")

    def plain(protocol, payload):
        return ethernet(wire.ipv4(source, destination, protocol, payload))

    other = [
        ethernet(bytes(28), ether_type=0x0806), ethernet(bytes(40), ether_type=0x88CC),
        ethernet(bytes(20), ether_type=0x888E), ethernet(b"", ether_type=0x0806),
        ethernet(b"\x42\x42\x03" + bytes(35), ether_type=38),  # IEEE 802.3 with a length: spanning tree
        plain(1, wire.icmp_echo(source, destination, 1, 1, b"ping")), plain(51, bytes(24)), plain(47, bytes(24)),
        plain(TCP, wire.tcp(source, destination, 4500, 4500, b"not ESP")), plain(254, b""),
        plain(UDP, wire.udp(source, destination, 500, 500, bytes(28))),
        ethernet(wire.ipv6(v6.source, v6.destination, 58, wire.icmp_echo(v6.source, v6.destination, 1, 1, b"six"))),
        ethernet(wire.ipv6(v6.source, wire.address("ff02::1"), 58, bytes(24),
                           extensions=[(HOP_BY_HOP, wire.padding_option(8))])),
        ethernet(wire.ipv6(v6.source, v6.destination, 59, b"")),
    ]
    mixed = [frame for each in other for frame in (each, ethernet(sender.seal()))]
    yield Case("other traffic in between", (sa,), tuple(mixed))
    yield Case("nothing but other traffic", (sa,), tuple(other))
    yield Case("garbage", (sa,), tuple(rng.randbytes(rng.randrange(80)) for _ in range(300)))
    yield Case("garbage behind an IPv4 type", (sa,), tuple(
        ethernet(b"\x45" + rng.randbytes(rng.randrange(80)), ether_type=0x0800) for _ in range(300)))


def _udp(rng):
    sa = association(carrier="v4+udp")
    sender = Sender(sa)

    def datagram(payload, ports=(4500, 4500)):
        return wire.ipv4(sa.source, sa.destination, UDP, wire.udp(sa.source, sa.destination, *ports, payload))

    keepalives = [datagram(b"\xff"), datagram(b"\xff\xff"), datagram(b"\0"), datagram(b"\xfe"), datagram(b"")]
    yield Case("keepalives and their like", (sa,), frames([*keepalives, sender.seal()]))
    marker = [datagram(bytes(length)) for length in range(0, 40)] + [datagram(bytes(4) + rng.randbytes(200))]
    yield Case("IKE behind the non-ESP marker", (sa,), frames([*marker, sender.seal()]))
    short = [datagram(struct.pack("!II", sa.spi, 1)[:length] + bytes(max(length - 8, 0))) for length in range(1, 60)]
    yield Case("short datagrams with the right SPI", (sa,), frames([*short, sender.seal()]))
    unknown = [datagram(struct.pack("!II", 0x77777777, 1)[:length] + bytes(max(length - 8, 0)))
               for length in range(1, 60)]
    yield Case("short datagrams with an unknown SPI", (sa,), frames([*unknown, sender.seal()]))
    packets = []
    for ports in ((4500, 4500), (4500, 9999), (9999, 4500), (9999, 9998), (500, 500), (4501, 4501)):
        packets.append(datagram(wire.parse(sender.seal()).payload[8:], ports))
    yield Case("ESP on other ports", (sa,), frames(packets))
    moved = association(carrier="v4+udp", encap=(10_000, 10_001))
    sender = Sender(moved)
    packets = [datagram(wire.parse(sender.seal()).payload[8:], ports)
               for ports in ((10_000, 10_001), (10_001, 10_000), (10_000, 7), (7, 10_001), (4500, 4500), (7, 8))]
    yield Case("ESP on the ports of the association", (moved,), frames(packets))
    behind = [_with_ip_payload(sender_packet, rng.randbytes(extra)) for extra in (1, 3, 4, 16)
              for sender_packet in [Sender(sa).seal()]]
    yield Case("bytes between the end of UDP and the end of IP", (without_replay(sa),), frames(behind))
    v6 = association(carrier="v6+udp")
    sender = Sender(v6)
    zero, wrong = (wire.parse(sender.seal()) for _ in range(2))
    unchecked = [whole.header + whole.payload[:6] + value + whole.payload[8:]
                 for whole, value in ((zero, b"\0\0"), (wrong, b"\x12\x34"))]
    yield Case("UDP checksums that are zero or wrong over IPv6", (v6,), frames([*unchecked, sender.seal()]))


def _with_ip_payload(data, extra):
    whole = wire.parse(data)
    return whole.with_payload(UDP, whole.payload + extra)


def _links(rng):
    sa, v6 = association(), association(carrier="v6")
    for count in range(4):
        for tag in VLAN_TYPES:
            senders = Sender(sa), Sender(v6)
            vlans = [(tag if level == 0 else 0x8100, rng.randrange(4096)) for level in range(count)]
            tagged = [ethernet(sender.seal(), vlans=vlans) for sender in senders for _ in range(3)]
            arp = ethernet(bytes(28), vlans=vlans, ether_type=0x0806)
            yield Case(f"{count} VLAN tags {tag:#x}", (sa, v6), tuple([*tagged, arp]))
    sender = Sender(sa)
    tagged = ethernet(sender.seal(), vlans=[(0x88A8, 5), (0x8100, 6)])
    yield Case("a VLAN frame cut at every length", (sa,), tuple(tagged[:length] for length in range(len(tagged) + 1)))
    for link_type, frame in ((LINUX_SLL, capture.sll), (LINUX_SLL2, capture.sll2), (RAW, bytes)):
        senders = Sender(sa), Sender(v6)
        whole = [frame(sender.seal()) for sender in senders for _ in range(3)]
        yield Case(f"link type {link_type}", (sa, v6), tuple(whole), link_type)
        cut = frame(Sender(sa).seal())
        yield Case(f"link type {link_type} cut at every length", (sa,),
                   tuple(cut[:length] for length in range(len(cut) + 1)), link_type)
    for version, link_type, each in ((4, capture.IPV4, sa), (6, capture.IPV6, v6)):
        sender, other = Sender(each), Sender(v6 if version == 4 else sa)
        yield Case(f"link type {link_type}", (sa, v6), (sender.seal(), sender.seal(), sender.seal()), link_type)
    crossed = [ethernet(Sender(sa).seal(), ether_type=0x86DD), ethernet(Sender(v6).seal(), ether_type=0x0800)]
    yield Case("the Ethernet type of the other IP version", (sa, v6), tuple([*crossed, ethernet(Sender(sa).seal())]))


def _spis(rng):
    sa = association()
    sender = Sender(sa)
    text = esp.seal_payload(sa, 1, packet(sa), 4)
    reserved = [esp.carry(sa, struct.pack("!I", spi) + text[4:]) for spi in range(257)]
    yield Case("SPIs 0 to 256", (sa,), frames([*reserved, sender.seal()]))
    unknown = [esp.carry(sa, struct.pack("!I", rng.randrange(256, 1 << 32)) + text[4:]) for _ in range(20)]
    yield Case("unknown SPIs", (sa,), frames([*unknown, sender.seal()]))
    stranger = wire.address("198.51.100.99")
    elsewhere = esp.carry(replace(sa, destination=stranger), esp.seal_payload(sa, 2, packet(sa), 4))
    yield Case("another destination", (sa,), frames([elsewhere, sender.seal()]))
    from_elsewhere = esp.carry(replace(sa, source=stranger), esp.seal_payload(sa, 9, packet(sa), 4))
    yield Case("another source", (sa,), frames([sender.seal(), from_elsewhere]))
    twin = replace(sa, destination=stranger, key=bytes(20))
    both = [each for pair in zip(*([Sender(one).seal() for _ in range(1)] for one in (sa, twin))) for each in pair]
    yield Case("one SPI at two destinations", (sa, twin), frames(both))
    empty = association(spi=0x100)
    yield Case("the smallest SPI", (empty,), frames([Sender(empty).seal()]))


def _carriers():
    """Whether ESP came in UDP says nothing about the association."""
    bare, encapsulated = association(), association(carrier="v4+udp")
    text = [esp.seal_payload(bare, number, packet(bare), 4) for number in (1, 2)]
    packets = frames([esp.carry(bare, text[0]), esp.carry(encapsulated, text[1])])
    yield Case("ESP in UDP for an association without encap", (bare,), packets)
    yield Case("bare ESP for an association with encap", (encapsulated,), packets)


def _outer_headers():
    for mode in ("tunnel", "transport"):
        sa = association(mode=mode)
        sender, packets = Sender(sa), []
        for options in (b"\1" * 4, b"\x94\x04\0\0", b"\7\x27\4" + bytes(37)):
            whole = wire.parse(sender.seal())
            packets.append(wire.ipv4(whole.source, whole.destination, ESP, whole.payload, options=options))
        zeroed = sender.seal()
        packets.append(zeroed[:10] + b"\0\0" + zeroed[12:])
        wrong = sender.seal()
        packets.append(wrong[:10] + bytes([wrong[10] ^ 1]) + wrong[11:])
        yield Case(f"IPv4 options and checksums, {mode}", (sa,), frames([*packets, sender.seal()]))
        sa = association(mode=mode, carrier="v6")
        sender, packets = Sender(sa), []
        routing = bytes([0, 2, 4, 0, 0, 0, 0, 0]) + sa.destination.packed
        for extensions in ([(HOP_BY_HOP, wire.padding_option(8))], [(DEST_OPTIONS, wire.padding_option(24))],
                           [(HOP_BY_HOP, wire.padding_option(16)), (ROUTING, routing),
                            (DEST_OPTIONS, wire.padding_option(8))]):
            whole = wire.parse(sender.seal())
            packets.append(wire.ipv6(whole.source, whole.destination, ESP, whole.payload, extensions=extensions))
        whole = wire.parse(sender.seal())
        for length in (1, 5, 30, 255):
            lie = b"\0" + bytes([length]) + bytes(6)
            packets.append(wire.ipv6(whole.source, whole.destination, ESP, whole.payload,
                                     extensions=[(DEST_OPTIONS, lie)]))
        for kind in (HOP_BY_HOP, ROUTING, DEST_OPTIONS, 44):
            for length in range(8):
                packets.append(wire.ipv6(whole.source, whole.destination, kind, bytes(length)))
        yield Case(f"IPv6 extension headers, {mode}", (sa,), frames([*packets, sender.seal()]))


def _short_esp(rng):
    for suite in ("aes128gcm16", "aes256-sha512", "null-sha256", "aes128ccm8"):
        for carrier in ("v4", "v6"):
            sa = association(suite, carrier=carrier)
            packets = []
            for spi in (sa.spi, 0x55555555):
                header = struct.pack("!II", spi, 1)
                packets += [esp.carry(sa, (header + rng.randbytes(100))[:length]) for length in range(109)]
            yield Case(f"ESP of every length up to 108, {suite} {carrier}", (sa,), frames([*packets, Sender(sa).seal()]))
