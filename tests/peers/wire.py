"""IPv4, IPv6, UDP, TCP and ICMP packets: built from fields, and taken apart with every length checked."""

import ipaddress
import struct
from dataclasses import dataclass, replace

HOP_BY_HOP, ICMP, IPIP, TCP, UDP, IPV6, ROUTING, FRAGMENT, ESP, ICMPV6, NO_NEXT, DEST_OPTIONS = (
    0, 1, 4, 6, 17, 41, 43, 44, 50, 58, 59, 60)
EXTENSIONS = (HOP_BY_HOP, ROUTING, DEST_OPTIONS)


class Malformed(Exception):
    """Lengths or headers contradict each other."""


@dataclass(frozen=True)
class Fragment:
    ident: int
    offset: int
    more: bool


@dataclass(frozen=True)
class IpPacket:
    """One IP packet, cut to its own length field."""

    version: int
    header: bytes  # with options, or with extension headers up to the upper layer
    payload: bytes
    protocol: int  # of the upper layer
    protocol_at: int  # offset in `header` of the byte that names it
    source: ipaddress.IPv4Address | ipaddress.IPv6Address
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address
    traffic_class: int
    hop_limit: int
    dont_fragment: bool
    fragment: Fragment | None

    def with_payload(self, protocol, payload):
        """The same packet around another payload; lengths and the header checksum are new."""
        header = bytearray(self.header)
        header[self.protocol_at] = protocol
        if self.version == 4:
            struct.pack_into("!H", header, 2, len(header) + len(payload))
            header[10:12] = bytes(2)
            struct.pack_into("!H", header, 10, checksum(header))
        else:
            struct.pack_into("!H", header, 4, len(header) - 40 + len(payload))
        return bytes(header) + payload


def address(text):
    return ipaddress.ip_address(text)


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def parse(data):
    """Takes an IP packet apart; raises Malformed.

    An IPv4 header checksum of 0 stands for one that the adapter was to fill in.
    """
    packet = parse_base(data)
    if packet.version == 6:
        return _walk_extensions(packet)
    if packet.header[10:12] != b"\0\0" and checksum(packet.header) != 0:
        raise Malformed("header checksum")
    return packet


def parse_base(data):
    """As `parse`, but checks version and lengths alone; IPv6 extension headers count as payload."""
    if not data:
        raise Malformed("empty")
    if data[0] >> 4 == 4:
        return _parse_v4(data)
    if data[0] >> 4 == 6:
        return _parse_v6(data)
    raise Malformed("version")


def parse_leniently(data):
    """As `parse` where that works, else as `parse_base`."""
    try:
        return parse(data)
    except Malformed:
        return parse_base(data)


def _parse_v4(data):
    if len(data) < 20:
        raise Malformed("shorter than an IPv4 header")
    header_len = (data[0] & 15) * 4
    (total,) = struct.unpack_from("!H", data, 2)
    if header_len < 20 or header_len > len(data):
        raise Malformed("IHL")
    if total < header_len or total > len(data):
        raise Malformed("total length")
    ident, flags = struct.unpack_from("!HH", data, 4)
    fragment = Fragment(ident, (flags & 0x1FFF) * 8, bool(flags & 0x2000)) if flags & 0x3FFF else None
    return IpPacket(4, data[:header_len], data[header_len:total], data[9], 9, address(data[12:16]), address(data[16:20]),
                    data[1], data[8], bool(flags & 0x4000), fragment)


def _parse_v6(data):
    if len(data) < 40:
        raise Malformed("shorter than an IPv6 header")
    total = 40 + struct.unpack_from("!H", data, 4)[0]
    if total > len(data):
        raise Malformed("payload length")
    return IpPacket(6, data[:40], data[40:total], data[6], 6, address(data[8:24]), address(data[24:40]),
                    (data[0] & 15) << 4 | data[1] >> 4, data[7], True, None)


def _walk_extensions(packet):
    data = packet.header + packet.payload
    at, protocol, protocol_at, fragment = 40, packet.protocol, packet.protocol_at, None
    while protocol in EXTENSIONS or protocol == FRAGMENT:
        if len(data) < at + 8:
            raise Malformed("extension header")
        if protocol == FRAGMENT:
            length = 8
            flags, ident = struct.unpack_from("!HI", data, at + 2)
            # RFC 6946: a datagram's only fragment is a whole packet.
            if flags & 0xFFF9:
                fragment = Fragment(ident, flags & 0xFFF8, bool(flags & 1))
        else:
            length = (data[at + 1] + 1) * 8
        if len(data) < at + length:
            raise Malformed("extension header")
        protocol, protocol_at = data[at], at
        at += length
        if fragment:
            break
    return replace(packet, header=data[:at], payload=data[at:], protocol=protocol, protocol_at=protocol_at,
                   fragment=fragment)


def ipv4(source, destination, protocol, payload, *, ttl=64, tos=0, ident=0, df=False, more=False, offset=0,
         options=b""):
    flags = df << 14 | more << 13 | offset // 8
    header = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, tos, 20 + len(options) + len(payload),
                                   ident, flags, ttl, protocol, 0, source.packed, destination.packed) + options)
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header) + payload


def ipv6(source, destination, protocol, payload, *, hop_limit=64, traffic_class=0, flow=0, extensions=()):
    """`extensions`: pairs of a protocol number and the header's bytes, whose first one is overwritten."""
    numbers = [number for number, _ in extensions] + [protocol]
    chain = b"".join(bytes([following]) + body[1:] for (_, body), following in zip(extensions, numbers[1:]))
    first = struct.pack("!IHBB", 6 << 28 | traffic_class << 20 | flow, len(chain) + len(payload), numbers[0],
                        hop_limit)
    return first + source.packed + destination.packed + chain + payload


def ip(source, destination, protocol, payload, *, tos=0, hop_limit=64):
    """A plain packet of the addresses' version."""
    if source.version == 4:
        return ipv4(source, destination, protocol, payload, tos=tos, ttl=hop_limit)
    return ipv6(source, destination, protocol, payload, traffic_class=tos, hop_limit=hop_limit)


def padding_option(length):
    """The body of a hop-by-hop or destination options header of `length` bytes, filled with PadN."""
    return bytes([0, length // 8 - 1, 1, length - 4]) + bytes(length - 4)


def fragment_header(ident, offset, more):
    return struct.pack("!BBHI", 0, 0, offset | more, ident)


def pseudo_header(source, destination, protocol, length):
    if source.version == 4:
        return source.packed + destination.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + destination.packed + struct.pack("!IHBB", length, 0, 0, protocol)


def transport_checksum(source, destination, protocol, segment):
    return checksum(pseudo_header(source, destination, protocol, len(segment)) + segment)


def udp(source, destination, source_port, destination_port, payload, *, with_checksum=True):
    header = struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0)
    if with_checksum:
        value = transport_checksum(source, destination, UDP, header + payload) or 0xFFFF
        header = header[:6] + struct.pack("!H", value)
    return header + payload


def tcp(source, destination, source_port, destination_port, payload, *, sequence=1):
    header = struct.pack("!HHIIBBHHH", source_port, destination_port, sequence, 0, 0x50, 0x18, 65535, 0, 0)
    value = transport_checksum(source, destination, TCP, header + payload)
    return header[:16] + struct.pack("!H", value) + header[18:] + payload


def icmp_echo(source, destination, ident, sequence, payload):
    if source.version == 4:
        header = struct.pack("!BBHHH", 8, 0, 0, ident, sequence)
        value = checksum(header + payload)
    else:
        header = struct.pack("!BBHHH", 128, 0, 0, ident, sequence)
        value = transport_checksum(source, destination, ICMPV6, header + payload)
    return header[:2] + struct.pack("!H", value) + header[4:] + payload


def fragments_v4(packet, size, ident):
    """The IPv4 packet in fragments of at most `size` bytes of payload, a multiple of 8."""
    whole = parse(packet)
    parts = []
    for offset in range(0, len(whole.payload), size):
        part = whole.payload[offset:offset + size]
        parts.append(ipv4(whole.source, whole.destination, whole.protocol, part, ttl=whole.hop_limit,
                          tos=whole.traffic_class, ident=ident, offset=offset,
                          more=offset + size < len(whole.payload)))
    return parts


def fragments_v6(packet, size, ident):
    """The IPv6 packet, which has no extension headers, in fragments."""
    whole = parse(packet)
    parts = []
    for offset in range(0, len(whole.payload), size):
        header = fragment_header(ident, offset, offset + size < len(whole.payload))
        parts.append(ipv6(whole.source, whole.destination, whole.protocol, whole.payload[offset:offset + size],
                          hop_limit=whole.hop_limit, traffic_class=whole.traffic_class,
                          extensions=[(FRAGMENT, header)]))
    return parts


def fragments(packet, size, ident):
    return (fragments_v4 if packet[0] >> 4 == 4 else fragments_v6)(packet, size, ident)
