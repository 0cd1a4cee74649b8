"""Flipped bits and truncations, everywhere."""

import struct

import capture
import wire
from hostile import SUITE_NAMES, Case, Sender, association, esp_offset, frames, packet, with_udp_checksum

CARRIERS = ("v4", "v6", "v4+udp", "v6+udp")


def cases(rng, quick):
    suites = SUITE_NAMES[:2] if quick else SUITE_NAMES
    for suite in suites:
        for mode in ("tunnel", "transport"):
            for carrier in CARRIERS:
                for esn in (False, True):
                    sa = association(suite, mode, carrier, esn=esn, start=(5 << 32 | 900) if esn else 900)
                    name = f"{suite} {mode} {carrier}{' esn' if esn else ''}"
                    yield _flips(rng, f"flipped bits, {name}", sa)
    for carrier in CARRIERS:
        sa = association("aes128gcm16", "tunnel", carrier)
        yield _every_bit(f"every bit of ESP flipped, {carrier}", sa)
        yield from _header_flips(f"every bit of the outer header flipped, {carrier}", sa)
        yield from _truncations(carrier, sa)


def _flip(data, at, bit):
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:]


def _repaired(sa, data):
    # A receiver may look at the UDP checksum, which is not what these cases are about.
    return with_udp_checksum(data) if sa.encap and sa.source.version == 6 else data


def _flips(rng, name, sa):
    """One bit of every byte; the packet as it was still has to be accepted behind them all."""
    good = Sender(sa).seal()
    packets = [_repaired(sa, _flip(good, at, rng.randrange(8))) for at in range(esp_offset(sa), len(good))]
    return Case(name, (sa,), frames([*packets, good, good]))


def _every_bit(name, sa):
    good = Sender(sa).seal(packet(sa, 4))
    packets = [_repaired(sa, _flip(good, at, bit)) for at in range(esp_offset(sa), len(good)) for bit in range(8)]
    return Case(name, (sa,), frames([*packets, good]))


def _header_flips(name, sa):
    """Each packet has a number of its own, because many of these are still acceptable."""
    sender = Sender(sa)
    packets = []
    for at in range(esp_offset(sa)):
        for bit in range(8):
            packets.append(_flip(sender.seal(), at, bit))
    yield Case(name, (sa,), tuple(packets), capture.RAW)
    ether_type = capture.ETHERTYPE_IPV4 if sa.source.version == 4 else capture.ETHERTYPE_IPV6
    yield Case(f"{name}, in Ethernet", (sa,),
               tuple(capture.ethernet(data, ether_type=ether_type) for data in packets))


def _truncations(carrier, sa):
    sender = Sender(sa)
    frame = capture.ethernet(sender.seal())
    cut = [frame[:length] for length in range(len(frame))]
    yield Case(f"frames cut at every length, {carrier}", (sa,), tuple([*cut, frame]))
    data = frame[14:]
    yield Case(f"raw packets cut at every length, {carrier}", (sa,), tuple(data[:length] for length in range(len(data))),
               capture.RAW)
    header = 20 if sa.source.version == 4 else 40
    consistent = [_shortened(data, length) for length in range(header, len(data))]
    yield Case(f"cut with a right IP length, {carrier}", (sa,), frames([*consistent, data]))
    if sa.encap:
        both = [_shortened(data, length, udp_at=header) for length in range(header + 8, len(data))]
        yield Case(f"cut with right IP and UDP lengths, {carrier}", (sa,), frames([*both, data]))
        lengths = [data[:header + 4] + struct.pack("!H", length) + data[header + 6:]
                   for length in [*range(len(data) - header + 20), 65535]]
        yield Case(f"every UDP length, {carrier}", (sa,), frames(lengths))
    declared = [_with_ip_length(data, length) for length in [*range(len(data) + 20), 65535]]
    yield Case(f"every IP length over the same bytes, {carrier}", (sa,), frames(declared))
    # What lies behind the IP packet is link-layer padding.
    padded = [sender.seal() + bytes(length) for length in range(0, 64, 7)]
    yield Case(f"padding behind the IP packet, {carrier}", (sa,), frames(padded))


def _with_ip_length(data, length):
    """The packet with another length in its IP header, IPv4 checksum repaired; `length` counts the header."""
    changed = bytearray(data)
    if data[0] >> 4 == 6:
        struct.pack_into("!H", changed, 4, max(length - 40, 0))
        return bytes(changed)
    struct.pack_into("!H", changed, 2, length)
    changed[10:12] = bytes(2)
    struct.pack_into("!H", changed, 10, wire.checksum(changed[:20]))
    return bytes(changed)


def _shortened(data, length, udp_at=None):
    changed = _with_ip_length(data, length)[:length]
    if udp_at is None:
        return changed
    changed = changed[:udp_at + 4] + struct.pack("!H", length - udp_at) + changed[udp_at + 6:]
    return with_udp_checksum(changed) if data[0] >> 4 == 6 else changed
