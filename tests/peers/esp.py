"""ESP on one packet (RFC 4303): sealing in any mode and carrier, and opening step by step."""

import hashlib
import struct

import suites
from wire import ESP, IPIP, IPV6, UDP, ipv4, ipv6, parse, parse_leniently, udp


def padding(suite, length):
    """Bytes 1, 2, 3... so that `length` bytes, padding and two bytes of trailer are aligned."""
    return bytes(range(1, 1 + -(length + 2) % suite.align))


def trailer(suite, length, next_header):
    pad = padding(suite, length)
    return pad + bytes([len(pad), next_header])


def seal_plaintext(sa, sequence, plaintext, iv=None):
    """The ESP packet around a plaintext that already has its trailer, whatever that says.

    Unless given, the IV is made from key and number, so that captures are the same on every run.
    """
    suite = sa.suite
    if iv is None:
        iv = hashlib.sha256(sa.key + sa.auth_key + struct.pack("!QI", sequence, sa.spi)).digest()[:suite.iv_len]
    body = suites.seal(suite, sa.key, sa.auth_key, sa.spi, sequence, sa.esn, iv, plaintext)
    return struct.pack("!II", sa.spi, sequence & 0xFFFFFFFF) + body


def seal_payload(sa, sequence, payload, next_header, tfc=0):
    """The ESP packet around a payload, followed by `tfc` bytes of traffic flow confidentiality padding."""
    payload += bytes(tfc)
    return seal_plaintext(sa, sequence, payload + trailer(sa.suite, len(payload), next_header))


def carry(sa, esp, *, tos=0, df=False):
    """The outer packet of a tunnel around an ESP packet."""
    protocol, payload = ESP, esp
    if sa.encap:
        protocol = UDP
        payload = udp(sa.source, sa.destination, *sa.encap, esp, with_checksum=sa.source.version == 6)
    if sa.source.version == 4:
        return ipv4(sa.source, sa.destination, protocol, payload, tos=tos, df=df)
    return ipv6(sa.source, sa.destination, protocol, payload, traffic_class=tos)


def seal(sa, sequence, inner, tfc=0):
    """The packet on the wire for the IP packet `inner`; DSCP, ECN and DF of a tunnel are copied."""
    if sa.mode == "tunnel":
        packet = parse_leniently(inner)
        next_header = IPIP if packet.version == 4 else IPV6
        esp = seal_payload(sa, sequence, inner, next_header, tfc)
        return carry(sa, esp, tos=packet.traffic_class, df=packet.dont_fragment)
    packet = parse(inner)
    esp = seal_payload(sa, sequence, packet.payload, packet.protocol, tfc)
    if not sa.encap:
        return packet.with_payload(ESP, esp)
    datagram = udp(packet.source, packet.destination, *sa.encap, esp, with_checksum=packet.version == 6)
    return packet.with_payload(UDP, datagram)


def minimum_len(suite):
    """Bytes of the shortest ESP packet that has room for IV, trailer and ICV."""
    return 8 + suite.iv_len + 2 + suite.icv_len


def is_aligned(suite, esp_len):
    return (esp_len - 8 - suite.iv_len - suite.icv_len) % suite.align == 0


def open_esp(sa, sequence, esp):
    """The plaintext with its trailer, None if the ICV is wrong."""
    return suites.open(sa.suite, sa.key, sa.auth_key, sa.spi, sequence, sa.esn, esp[8:])


def strip_trailer(plaintext):
    """Payload and next header; None if pad length or padding bytes are wrong."""
    pad_len, next_header = plaintext[-2:]
    if pad_len > len(plaintext) - 2:
        return None
    end = len(plaintext) - 2 - pad_len
    if plaintext[end:-2] != bytes(range(1, pad_len + 1)):
        return None
    return plaintext[:end], next_header
