"""Mixed traffic: IP packets of many shapes and lengths, the same for the same seed."""

import random

import wire
from wire import DEST_OPTIONS, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, TCP, UDP, address

EXPERIMENT = 253  # RFC 3692; next header 59 would make a dummy packet in transport mode
# Total lengths of the packets besides the smallest possible ones; 9000 is a jumbo frame.
LENGTHS = (61, 64, 65, 128, 255, 256, 257, 576, 1023, 1280, 1399, 1400, 1500, 9000)
# DSCP best effort, EF and AF11 with each ECN field.
TRAFFIC_CLASSES = (0x00, 0x01, 0x02, 0x03, 0xB8, 0xBB, 0x2A)
OPTIONS = bytes.fromhex("01010101"), bytes.fromhex("9404000001010100")  # no-operation; router alert
# RFC 8754: next header, length in 8 bytes, type 4, segments left 0, last entry, flags, tag, one segment.
SEGMENT_ROUTING = bytes([0, 2, 4, 0, 0, 0, 0, 0]) + address("fd00::77").packed
EXTENSIONS = (
    [(HOP_BY_HOP, wire.padding_option(8))],
    [(DEST_OPTIONS, wire.padding_option(16))],
    [(HOP_BY_HOP, wire.padding_option(16)), (ROUTING, SEGMENT_ROUTING), (DEST_OPTIONS, wire.padding_option(8))],
    [(DEST_OPTIONS, wire.padding_option(8)), (ROUTING, SEGMENT_ROUTING)],
)


def packets(seed, source, destination, lengths=LENGTHS):
    """Packets from `source` to `destination`, of their IP version."""
    rng = random.Random(seed)
    shapes = _v4_shapes(rng) if source.version == 4 else _v6_shapes(rng)
    minimum = 20 if source.version == 4 else 40
    result = [_bare(source, destination), *(_echo(rng, source, destination, size) for size in range(0, 20))]
    for length in lengths:
        result.append(next(shapes)(source, destination, length - minimum))
    return result


def flows(seed, pairs, lengths=LENGTHS):
    """Packets of several pairs of addresses, interleaved."""
    lists = [packets(f"{seed} {index}", *pair, lengths) for index, pair in enumerate(pairs)]
    return [packet for group in zip(*lists) for packet in group]


def _bare(source, destination):
    """An IP header and nothing behind it."""
    return wire.ip(source, destination, EXPERIMENT, b"")


def _echo(rng, source, destination, size):
    payload = wire.icmp_echo(source, destination, 0x1234, size, rng.randbytes(size))
    return wire.ip(source, destination, ICMP if source.version == 4 else ICMPV6, payload)


def _upper(rng, source, destination, room):
    """Protocol and bytes of an upper layer that fills `room` bytes."""
    ports = rng.randrange(1024, 65536), rng.randrange(1024, 65536)
    kind = rng.choice((TCP, UDP, "echo"))
    if kind == TCP and room >= 20:
        return TCP, wire.tcp(source, destination, *ports, rng.randbytes(room - 20))
    if kind == UDP or room < 8:
        return UDP, wire.udp(source, destination, *ports, rng.randbytes(max(room, 8) - 8))
    protocol = ICMP if source.version == 4 else ICMPV6
    return protocol, wire.icmp_echo(source, destination, ports[0], 7, rng.randbytes(room - 8))


def _v4_shapes(rng):
    while True:
        for options in (b"", *OPTIONS, b""):
            def build(source, destination, room, options=options):
                protocol, payload = _upper(rng, source, destination, room - len(options))
                return wire.ipv4(source, destination, protocol, payload, ttl=rng.choice((1, 64, 255)),
                                 tos=rng.choice(TRAFFIC_CLASSES), ident=rng.randrange(65536),
                                 df=rng.random() < 0.5, options=options)
            yield build


def _v6_shapes(rng):
    while True:
        for extensions in ([], *EXTENSIONS, []):
            def build(source, destination, room, extensions=extensions):
                taken = sum(len(body) for _, body in extensions)
                protocol, payload = _upper(rng, source, destination, room - taken)
                return wire.ipv6(source, destination, protocol, payload, hop_limit=rng.choice((1, 64, 255)),
                                 traffic_class=rng.choice(TRAFFIC_CLASSES), flow=rng.randrange(1 << 20),
                                 extensions=extensions)
            yield build
