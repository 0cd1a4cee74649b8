"""Rules of `vesper-verify encap` that one small capture each shows."""

import ipaddress
import random
from dataclasses import replace

import capture
import encap_check
import matrix
import traffic
import wire
from receiver import Receiver
from sa import Selector
from suites import SUITES
from wire import TCP, UDP, address

SOURCE, DESTINATION = matrix.INNER[4]


def _association(**changes):
    carrier = matrix.CARRIERS[0]
    return matrix.Cell("rules", SUITES["aes128gcm16"], changes.pop("mode", "tunnel"), carrier, False, 0).association(
        **changes)


def _udp_packet(port=53, size=64, **fields):
    datagram = wire.udp(SOURCE, DESTINATION, 4000, port, bytes(size))
    return wire.ipv4(SOURCE, DESTINATION, UDP, datagram, **fields)


def _sealed(verifier, lines, packets):
    sealed = verifier.encap("\n".join(lines), capture.write_pcap(capture.RAW, packets))
    frames = sealed.frames or []
    return sealed, [capture.network_layer(sealed.link_type, frame)[0] for frame in frames]


def _opened(associations, packets):
    receiver = Receiver(associations)
    for packet in packets:
        receiver.frame(capture.RAW, packet)
    return receiver.inner


def run(verifier, report):
    for rule in (_selector, _several, _exhaustion, _traffic_flow, _outer_fields, _fragments, _too_long, _hostile, _nothing):
        fault = rule(verifier)
        report.check(fault is None, lambda: f"{rule.__name__.strip('_')}: {fault}")


def _selector(verifier):
    """Only what the selector matches is sealed, nothing else is copied."""
    selector = Selector(ipaddress.ip_network("10.1.0.0/16"), None, UDP, None, 53)
    sa = _association(selector=selector)
    segment = wire.tcp(SOURCE, DESTINATION, 4000, 53, b"x")
    foreign = address("10.2.0.1")
    packets = [_udp_packet(53), _udp_packet(54), wire.ipv4(SOURCE, DESTINATION, TCP, segment),
               wire.ipv4(foreign, DESTINATION, UDP, wire.udp(foreign, DESTINATION, 1, 53, b"y")), _udp_packet(53, 9)]
    _, wire_packets = _sealed(verifier, [sa.line()], packets)
    if _opened([sa], wire_packets) != [packets[0], packets[4]] or len(wire_packets) != 2:
        return f"{len(wire_packets)} packets sealed, expected the 2 that match"
    return None


def _several(verifier):
    """Each association has its own sequence numbers."""
    first = _association(selector=Selector(protocol=UDP, destination_port=53))
    second = replace(_association(selector=Selector(protocol=UDP, destination_port=54)), spi=0xABCDEF, last_sent=70,
                     suite=SUITES["chacha20poly1305"], key=bytes(range(36)))
    packets = [_udp_packet(53 + index % 2, index) for index in range(10)]
    _, wire_packets = _sealed(verifier, [first.line(), second.line()], packets)
    if _opened([first, second], wire_packets) != packets:
        return "the packets of two associations did not come back"
    found = [fault for index, data in enumerate(wire_packets)
             for fault in encap_check.faults((first, second)[index % 2], (1, 71)[index % 2] + index // 2,
                                             packets[index], data)]
    return found[0] if found else None


def _exhaustion(verifier):
    """RFC 4303 section 3.3.3: the counter never cycles."""
    sa = _association(last_sent=0xFFFFFFFD)
    packets = [_udp_packet(size=index) for index in range(6)]
    sealed, wire_packets = _sealed(verifier, [sa.line()], packets)
    numbers = [int.from_bytes(data[24:28], "big") for data in wire_packets]
    if numbers != [0xFFFFFFFE, 0xFFFFFFFF]:
        return f"sequence numbers {numbers}"
    return None if sealed.exit == 1 else f"exit {sealed.exit}, though packets could not be sealed"


def _traffic_flow(verifier):
    """`tfcpad`: payloads of at least so many bytes, the rest zero."""
    sa = _association(tfc_pad=512)
    packets = [_udp_packet(size=size) for size in (0, 100, 483, 484, 485, 1000)]
    _, wire_packets = _sealed(verifier, [sa.line()], packets)
    found = [fault for index, data in enumerate(wire_packets)
             for fault in encap_check.faults(sa, 1 + index, packets[index], data)]
    if len(wire_packets) != len(packets):
        return f"{len(wire_packets)} of {len(packets)} packets"
    return found[0] if found else None


def _outer_fields(verifier):
    """`noecn`, `nopmtudisc` and `dont-encap-dscp` clear the field of the outer header that they name."""
    packets = [_udp_packet(tos=0xBA, df=True)]
    for words, expected in (("", (0xBA, True)), (" flag noecn", (0xB8, True)), (" flag nopmtudisc", (0xBA, False)),
                            (" extra-flag dont-encap-dscp", (0x02, True))):
        line = _association().line() + words
        sealed, wire_packets = _sealed(verifier, [line], packets)
        if len(wire_packets) != 1:
            return f"{line}: exit {sealed.exit}: {sealed.stderr[:200]}"
        outer = wire.parse(wire_packets[0])
        if (outer.traffic_class, outer.dont_fragment) != expected:
            return f"{words!r}: traffic class {outer.traffic_class:#x}, DF {outer.dont_fragment}; expected {expected}"
    return None


def _fragments(verifier):
    """A tunnel carries fragments as they are; transport mode is for whole datagrams (RFC 4303 section 3.3.4)."""
    source, destination = matrix.OUTER[4]
    whole = wire.ipv4(source, destination, UDP, wire.udp(source, destination, 1, 2, bytes(3000)))
    parts = wire.fragments(whole, 1480, 77)
    tunnel, transport = _association(), _association(mode="transport")
    _, wire_packets = _sealed(verifier, [tunnel.line()], parts)
    if _opened([tunnel], wire_packets) != parts:
        return "fragments did not come back out of a tunnel"
    _, wire_packets = _sealed(verifier, [transport.line()], parts)
    return f"{len(wire_packets)} fragments sealed in transport mode" if wire_packets else None


def _too_long(verifier):
    """What is longer than an IP packet can be once sealed is left out; what follows is sealed."""
    sa = _association()
    packets = [_udp_packet(size=65535 - 28), _udp_packet(size=65535 - 28 - 60), _udp_packet(size=5)]
    _, wire_packets = _sealed(verifier, [sa.line()], packets)
    return None if _opened([sa], wire_packets) == packets[1:] else f"{len(wire_packets)} packets sealed, expected 2"


def _hostile(verifier):
    """Of hostile input only whole packets are sealed, each cut to its own length."""
    rng = random.Random("hostile input")
    for mode in ("tunnel", "transport"):
        sa = _association(mode=mode)
        good = matrix.OUTER[4] if mode == "transport" else matrix.INNER[4]
        packets = []
        for packet in traffic.packets("hostile input", *good, (64, 200, 600)) * 12:
            data = bytearray(packet)
            if rng.random() < 0.7:
                data[rng.randrange(10)] = rng.randrange(256)
            packets.append(bytes(data[:rng.randrange(len(data))] if rng.random() < 0.2 else data))
        sealed, wire_packets = _sealed(verifier, [sa.line()], packets)
        if sealed.exit not in (0, 1):
            return f"{mode}: exit {sealed.exit}: {sealed.stderr[:200]}"
        whole = iter(_whole(packet, mode) for packet in packets)
        opened = _opened([sa], wire_packets)
        if len(opened) != len(wire_packets) or not all(packet in whole for packet in opened):
            return f"{mode}: {len(opened)} of {len(wire_packets)} packets opened, in the order of the input or not"
        numbers = [int.from_bytes(wire.parse(data).payload[4:8], "big") for data in wire_packets]
        if numbers != list(range(1, len(numbers) + 1)):
            return f"{mode}: sequence numbers {numbers}"
    return None


def _whole(packet, mode):
    """The packet that its header describes; None if there is none. Transport mode renews the header checksum."""
    try:
        described = wire.parse_base(packet)
    except wire.Malformed:
        return None
    if mode == "transport":
        return described.with_payload(described.protocol, described.payload)
    return described.header + described.payload


def _nothing(verifier):
    """Exit 1 if nothing was sealed."""
    selector = Selector(protocol=TCP)
    sealed, wire_packets = _sealed(verifier, [_association(selector=selector).line()], [_udp_packet()])
    if wire_packets or sealed.exit != 1:
        return f"exit {sealed.exit} with {len(wire_packets)} packets"
    return None
