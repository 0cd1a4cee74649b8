"""What the makers of hostile captures share."""

import random
from dataclasses import dataclass, replace

import capture
import esp
import matrix
import wire
from sa import Sa
from suites import SUITES
from wire import FRAGMENT, ICMP, ICMPV6, TCP, UDP

# One suite of each construction: counter mode AEAD, 16-byte alignment, no encryption, short ICV.
SUITE_NAMES = ("aes128gcm16", "aes256-sha512", "null-sha256", "aes128ccm8", "chacha20poly1305", "aes128gmac",
               "aes192ctr-sha1", "aes256gcm8")


@dataclass(frozen=True)
class Case:
    """A capture with its associations."""

    name: str
    associations: tuple[Sa, ...]
    frames: tuple[bytes, ...]
    link_type: int = capture.ETHERNET

    def sa_text(self):
        return "\n".join(sa.line() for sa in self.associations)

    def data(self, count=None):
        """The capture file; of its first `count` frames."""
        return capture.write_pcap(self.link_type, self.frames[:count])


class Sender:
    """Seals with one association and consecutive numbers."""

    def __init__(self, sa):
        self.sa, self.number = sa, sa.last_sent

    def next(self):
        self.number += 1
        return self.number

    def seal(self, inner=None, tfc=0):
        return esp.seal(self.sa, self.next(), inner if inner is not None else packet(self.sa), tfc)

    def plaintext(self, plaintext, **fields):
        """The wire packet around a plaintext that brings its own trailer."""
        return around(self.sa, esp.seal_plaintext(self.sa, self.next(), plaintext), **fields)

    def payload(self, payload, next_header):
        return self.plaintext(payload + esp.trailer(self.sa.suite, len(payload), next_header))


def association(suite="aes128gcm16", mode="tunnel", carrier="v4", *, esn=False, start=0, **changes):
    carriers = {each.name: each for each in matrix.CARRIERS}
    return matrix.Cell("hostile", SUITES[suite], mode, carriers[carrier], esn, start).association(**changes)


def without_replay(sa):
    return replace(sa, window=0)


def packet(sa, size=24, port=53, seed=0):
    """A UDP packet for inside the association."""
    version = sa.source.version
    source, destination = (sa.source, sa.destination) if sa.mode == "transport" else matrix.INNER[version]
    datagram = wire.udp(source, destination, 4000, port, random.Random(seed).randbytes(size))
    return wire.ip(source, destination, UDP, datagram)


def tcp_packet(sa, size=24):
    source, destination = (sa.source, sa.destination) if sa.mode == "transport" else matrix.INNER[sa.source.version]
    return wire.ip(source, destination, TCP, wire.tcp(source, destination, 4000, 80, bytes(size)))


def echo_packet(sa, size=24):
    source, destination = (sa.source, sa.destination) if sa.mode == "transport" else matrix.INNER[sa.source.version]
    protocol = ICMP if source.version == 4 else ICMPV6
    return wire.ip(source, destination, protocol, wire.icmp_echo(source, destination, 1, 2, bytes(size)))


def around(sa, esp_packet, **fields):
    """The outer packet around an ESP packet; of transport mode too, for an IP header without frills."""
    return esp.carry(sa, esp_packet, **fields)


def esp_offset(sa):
    return (20 if sa.source.version == 4 else 40) + (8 if sa.encap else 0)


def with_udp_checksum(data):
    """The same UDP packet over IPv6 with a right checksum, after its payload was changed."""
    whole = wire.parse(data)
    datagram = whole.payload[:6] + bytes(2) + whole.payload[8:]
    value = wire.transport_checksum(whole.source, whole.destination, UDP, datagram) or 0xFFFF
    return whole.header + datagram[:6] + value.to_bytes(2, "big") + datagram[8:]


def refragmented(part, offset=None, more=None, payload=None):
    """A fragment with other fields."""
    whole = wire.parse(part)
    fragment = whole.fragment
    offset = fragment.offset if offset is None else offset
    more = fragment.more if more is None else more
    payload = whole.payload if payload is None else payload
    if whole.version == 4:
        return wire.ipv4(whole.source, whole.destination, whole.protocol, payload, ident=fragment.ident, more=more,
                         offset=offset)
    header = wire.fragment_header(fragment.ident, offset, more)
    return wire.ipv6(whole.source, whole.destination, whole.protocol, payload, extensions=[(FRAGMENT, header)])


def frames(packets):
    return tuple(capture.ethernet(data) for data in packets)
