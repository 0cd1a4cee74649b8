"""Authentic packets whose inside is wrong: padding, trailers, inner headers, selectors."""

import ipaddress
import struct

import esp
import matrix
import wire
from hostile import SUITE_NAMES, Case, Sender, association, echo_packet, frames, packet, tcp_packet
from sa import Selector
from wire import DEST_OPTIONS, ICMP, IPIP, IPV6, NO_NEXT, TCP, UDP


def cases(rng, quick):
    for suite in SUITE_NAMES[:3] if quick else SUITE_NAMES:
        for mode, carrier in (("tunnel", "v4"), ("tunnel", "v6+udp"), ("transport", "v4+udp"), ("transport", "v6")):
            sa = association(suite, mode, carrier)
            name = f"{suite} {mode} {carrier}"
            yield Case(f"padding, {name}", (sa,), frames(_padding(rng, Sender(sa))))
            yield Case(f"dummies, {name}", (sa,), frames(_dummies(rng, Sender(sa))))
            yield Case(f"next headers, {name}", (sa,), frames(_next_headers(rng, Sender(sa))))
    for carrier in ("v4", "v6", "v4-in-v6", "v6-in-v4"):
        sa = association("aes128gcm16", "tunnel", carrier)
        for version in (4, 6):
            yield Case(f"inner IPv{version} header lies, {carrier}", (sa,), frames(_inner_lies(Sender(sa), version)))
        yield Case(f"traffic flow confidentiality, {carrier}", (sa,), frames(_tfc(rng, Sender(sa))))
    yield from _selectors()


def _padding(rng, sender):
    sa, suite = sender.sa, sender.sa.suite
    payload = packet(sa) if sa.mode == "tunnel" else wire.parse(packet(sa)).payload
    next_header = {"transport": UDP, "tunnel": IPIP if sa.source.version == 4 else IPV6}[sa.mode]

    def sealed(text, pad, length=None):
        return sender.plaintext(text + bytes(pad) + bytes([len(pad) if length is None else length, next_header]))

    shortest = len(esp.padding(suite, len(payload)))
    right = [bytes(range(1, length + 1)) for length in range(shortest, 256, suite.align)]
    packets = [sealed(payload, pad) for pad in right]
    for pad in (right[0] or right[1], right[2], right[-1]):
        for at in range(len(pad)):
            for value in {0, (pad[at] + 1) & 255, pad[at] ^ 0x80, rng.randrange(256)} - {pad[at]}:
                packets.append(sealed(payload, pad[:at] + bytes([value]) + pad[at + 1:]))
    for pad in right[:3]:
        packets += [sealed(payload, bytes(len(pad))), sealed(payload, bytes(reversed(pad)))]
        text_len = len(payload) + len(pad)
        # A pad length up to the packet, one beyond it, far beyond it.
        packets += [sealed(payload, pad, length) for length in range(256) if length > len(pad) or length < 6]
        packets += [sealed(payload, pad, length) for length in (text_len, text_len + 1) if length < 256]
    # Nothing but padding.
    for pad in (esp.padding(suite, 0), bytes(range(1, len(esp.padding(suite, 0)) + suite.align + 1))):
        packets.append(sealed(b"", pad))
    packets.append(sealed(b"", esp.padding(suite, 0), 255))
    # Numbers of packets with wrong padding are used up.
    bad = sealed(payload, bytes([9]) + right[1][1:])
    return [*packets, bad, bad, sender.seal()]


def _dummies(rng, sender):
    suite = sender.sa.suite
    packets = []
    for length in [*range(20), 100, 1400]:
        dummy = sender.payload(rng.randbytes(length), NO_NEXT)
        packets += [sender.seal(), dummy, dummy]
    # A dummy that looks like a packet; and one whose padding is wrong.
    packets.append(sender.payload(packet(sender.sa), NO_NEXT))
    pad = bytearray(esp.padding(suite, 100)) + bytes(suite.align)
    packets.append(sender.plaintext(bytes(100) + bytes(pad) + bytes([len(pad), NO_NEXT])))
    return [*packets, sender.seal()]


def _next_headers(rng, sender):
    sa = sender.sa
    payload = packet(sa) if sa.mode == "tunnel" else rng.randbytes(24)
    other = packet(association(carrier="v6" if sa.source.version == 4 else "v4"))
    packets = [sender.payload(payload, next_header) for next_header in range(256)]
    if sa.mode == "tunnel":
        packets += [sender.payload(other, next_header) for next_header in (IPIP, IPV6, UDP)]
        packets += [sender.payload(b"", next_header) for next_header in (IPIP, IPV6)]
    else:
        packets += [sender.payload(b"", next_header) for next_header in (UDP, TCP, IPIP, IPV6, 253)]
    return packets


def _inner_lies(sender, version):
    source, destination = matrix.INNER[version]
    inner = wire.ip(source, destination, UDP, wire.udp(source, destination, 1, 2, bytes(40)))
    next_header = IPIP if version == 4 else IPV6
    lies = [bytes([nibble << 4 | inner[0] & 15]) + inner[1:] for nibble in range(16)]
    if version == 4:
        lies += [bytes([0x40 | ihl]) + inner[1:] for ihl in range(16)]
        lies += [inner[:2] + struct.pack("!H", length) + inner[4:] for length in [*range(len(inner) + 30), 65535]]
        lies += [inner[:10] + b"\0\0" + inner[12:], inner[:10] + b"\x12\x34" + inner[12:]]
    else:
        lies += [inner[:4] + struct.pack("!H", length) + inner[6:] for length in [*range(len(inner) - 10), 65535]]
        lies += [inner[:6] + bytes([header]) + inner[7:] for header in (0, 43, 44, 51, 60)]
    lies += [inner[:length] for length in range(len(inner))]
    return [*(sender.payload(lie, next_header) for lie in lies), sender.payload(inner, next_header)]


def _tfc(rng, sender):
    inner = [packet(sender.sa, size) for size in (0, 1, 40, 300)]
    packets = [sender.seal(each, tfc) for each in inner for tfc in (0, 1, 2, 3, 7, 16, 255, 1000)]
    # RFC 4303 section 2.7 does not say what the padding contains.
    next_header = IPIP if sender.sa.source.version == 4 else IPV6
    return [*packets, *(sender.payload(each + rng.randbytes(99), next_header) for each in inner)]


def _selectors():
    for mode in ("tunnel", "transport"):
        for carrier in ("v4", "v6"):
            plain = association("aes128gcm16", mode, carrier)
            version = plain.source.version
            source, destination = matrix.OUTER[version] if mode == "transport" else matrix.INNER[version]
            bits = source.max_prefixlen
            near = ipaddress.ip_network(f"{source}/{bits - 8}", strict=False)
            # The same prefix length, next door.
            beside = ipaddress.ip_network((int(near.network_address) ^ 1 << 8, bits - 8))
            echo = ICMP if version == 4 else wire.ICMPV6
            for label, selector in (
                ("host", Selector(ipaddress.ip_network(source), ipaddress.ip_network(destination))),
                ("prefix", Selector(near, None)),
                ("prefix beside", Selector(beside, None)),
                ("destination beside", Selector(None, beside)),
                ("any", Selector(ipaddress.ip_network((0, 0)) if version == 4 else ipaddress.ip_network("::/0"))),
                ("protocol", Selector(near, None, TCP)),
                ("UDP port", Selector(near, None, UDP, None, 53)),
                ("other UDP port", Selector(near, None, UDP, None, 54)),
                ("both ports", Selector(near, None, UDP, 4000, 53)),
                ("source port", Selector(near, None, UDP, 4001, None)),
                ("echo type", Selector(near, None, echo, 8 if version == 4 else 128, None)),
                ("other type", Selector(near, None, echo, 0 if version == 4 else 129, None)),
            ):
                sa = association("aes128gcm16", mode, carrier, selector=selector)
                yield Case(f"selector {label}, {mode} {carrier}", (sa,), frames(_for_selector(Sender(sa))))


def _for_selector(sender):
    sa = sender.sa
    inner = [packet(sa), packet(sa, port=54), packet(sa, 0), tcp_packet(sa), echo_packet(sa)]
    if sa.mode == "tunnel":
        plain = wire.parse(packet(sa, 600))
        inner += wire.fragments(packet(sa, 600), 256, 5)
        inner.append(wire.ip(plain.source, plain.destination, UDP, b"\x0f\xa0\x00"))  # half a UDP header
        inner.append(wire.ip(plain.destination, plain.source, UDP, plain.payload))
        if plain.version == 6:
            for extensions in ([(DEST_OPTIONS, wire.padding_option(8))],
                               [(wire.HOP_BY_HOP, wire.padding_option(8)), (DEST_OPTIONS, wire.padding_option(16))]):
                inner.append(wire.ipv6(plain.source, plain.destination, UDP, plain.payload, extensions=extensions))
    packets = [sender.seal(each) for each in inner]
    if sa.mode == "transport" and sa.source.version == 6:
        # Destination options behind ESP (RFC 4303 section 3.1.1), then UDP.
        datagram = wire.parse(packet(sa)).payload
        packets.append(sender.payload(bytes([UDP]) + wire.padding_option(16)[1:] + datagram, DEST_OPTIONS))
        packets.append(sender.payload(bytes([UDP, 9]) + wire.padding_option(16)[2:] + datagram, DEST_OPTIONS))
    # What a selector refused is nevertheless seen.
    return [*packets, packets[1], sender.seal()]
