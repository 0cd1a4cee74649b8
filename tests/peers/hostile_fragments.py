"""Outer fragments: alone, in any order, twice, overlapping, interleaved, contradicting each other."""

import struct

import esp
import wire
from hostile import Case, Sender, association, frames, packet, refragmented
from wire import ESP, FRAGMENT, UDP

CARRIERS = ("v4", "v6", "v4+udp", "v6+udp")


def cases(rng, quick):
    for carrier in CARRIERS:
        for mode in ("tunnel", "transport"):
            name = f"{mode} {carrier}"
            yield from _complete(rng, name, association("aes128gcm16", mode, carrier))
        yield from _incomplete(carrier, association("aes128gcm16", "tunnel", carrier))
        yield from _contradictions(carrier, association("aes128gcm16", "tunnel", carrier))
    yield _keys(association("aes128gcm16", "tunnel", "v4"))
    yield _atomic(association("aes128gcm16", "tunnel", "v6"))
    yield _not_esp(association("aes128gcm16", "tunnel", "v4"))


def _datagrams(sender, sizes=(600, 1000, 2000, 3000), piece=512, first_ident=1):
    """Lists of fragments."""
    return [wire.fragments(sender.seal(packet(sender.sa, size, seed=size)), piece, first_ident + index)
            for index, size in enumerate(sizes)]


def _complete(rng, name, sa):
    for order in ("in order", "reversed", "shuffled"):
        sender, packets = Sender(sa), []
        for parts in _datagrams(sender):
            if order == "reversed":
                parts.reverse()
            elif order == "shuffled":
                rng.shuffle(parts)
            packets += [*parts, sender.seal()]
        yield Case(f"fragments {order}, {name}", (sa,), frames(packets))
    sender = Sender(sa)
    interleaved = [part for parts in _datagrams(sender, (700, 900, 1100, 1300, 2500)) for part in parts]
    rng.shuffle(interleaved)
    yield Case(f"fragments of five datagrams interleaved, {name}", (sa,), frames(interleaved))
    sender = Sender(sa)
    small = _datagrams(sender, (200,), 8)[0]
    rng.shuffle(small)
    yield Case(f"fragments of eight bytes, {name}", (sa,), frames(small))
    sender = Sender(sa)
    twice = []
    for parts in _datagrams(sender):
        for part in parts[:-1]:
            twice += [part, part]
        twice.append(parts[-1])
    yield Case(f"every fragment but the last twice, {name}", (sa,), frames(twice))
    sender = Sender(sa)
    again = [part for parts in _datagrams(sender) for part in [*parts, *parts]]
    yield Case(f"whole datagrams twice, {name}", (sa,), frames(again))
    sender = Sender(sa)
    flipped = []
    for parts in _datagrams(sender):
        which = rng.randrange(len(parts))
        last = parts[which]
        parts[which] = last[:-1] + bytes([last[-1] ^ 4])
        flipped += parts
    yield Case(f"a flipped bit in a fragment, {name}", (sa,), frames(flipped))


def _incomplete(carrier, sa):
    for which in ("first", "middle", "last"):
        sender, packets = Sender(sa), []
        for parts in _datagrams(sender, (2000, 3000)):
            packets.append(parts[{"first": 0, "middle": 1, "last": -1}[which]])
            packets.append(sender.seal())
        yield Case(f"lone {which} fragments, {carrier}", (sa,), frames(packets))
    sender, packets = Sender(sa), []
    for index, parts in enumerate(_datagrams(sender, (2000, 2000, 2000, 2000))):
        packets += [part for at, part in enumerate(parts) if at != index]
        packets.append(sender.seal())
    yield Case(f"one fragment missing, {carrier}", (sa,), frames(packets))


def _contradictions(carrier, sa):
    def three(ident):
        return wire.fragments(sender.seal(packet(sa, 1200, seed=ident)), 512, ident)

    sender = Sender(sa)
    first, middle, last = three(1)
    changed = bytes([wire.parse(middle).payload[0] ^ 1]) + wire.parse(middle).payload[1:]
    yield Case(f"a fragment again with other bytes, {carrier}", (sa,), frames(
        [first, middle, refragmented(middle, payload=changed), sender.seal()]))
    for name, offset in (("left", 512 - 8), ("right", 512 + 8)):
        sender = Sender(sa)
        first, middle, last = three(2)
        yield Case(f"a fragment that overlaps its {name} neighbour, {carrier}", (sa,), frames(
            [first, last, refragmented(middle, offset=offset, payload=bytes(512)), sender.seal()]))
    sender = Sender(sa)
    first, middle, last = three(3)
    odd = [refragmented(first, payload=wire.parse(first).payload[:length]) for length in (1, 7, 9, 511)]
    yield Case(f"lengths that are no multiple of eight, {carrier}", (sa,), frames([*odd, sender.seal()]))
    sender = Sender(sa)
    first, middle, last = three(4)
    far = [refragmented(last, offset=offset, payload=bytes(length)) for offset, length in
           ((65528, 8), (65528, 100), (65520, 64), (64000, 1600))]
    yield Case(f"fragments beyond the longest packet, {carrier}", (sa,), frames([*far, sender.seal()]))
    sender = Sender(sa)
    first, middle, last = three(5)
    yield Case(f"empty fragments, {carrier}", (sa,), frames(
        [refragmented(first, payload=b""), refragmented(last, payload=b""), sender.seal()]))
    # A datagram of the greatest length, whose ESP packet is what it says.
    sender = Sender(sa)
    room = 65535 - 200
    longest = sender.seal(packet(sa, room - 28 if sa.source.version == 4 else room - 48))
    yield Case(f"the longest datagram, {carrier}", (sa,), frames([*wire.fragments(longest, 1480, 9), sender.seal()]))


def _keys(sa):
    """Fragments with the same identification belong together only if addresses and protocol agree."""
    sender = Sender(sa)
    first = sender.seal(packet(sa, 900))
    other_source = wire.address("192.0.2.77")
    second = esp.carry(association(source=other_source), wire.parse(sender.seal(packet(sa, 900))).payload)
    third = association("aes128gcm16", "tunnel", "v4+udp")
    third = esp.carry(third, wire.parse(sender.seal(packet(sa, 900))).payload)
    lists = [wire.fragments(each, 400, 99) for each in (first, second, third)]
    return Case("same identification, other source or protocol", (sa,), frames(
        [part for parts in zip(*lists) for part in parts]))


def _atomic(sa):
    """RFC 6946: a fragment header on a whole packet needs nothing else."""
    sender, packets = Sender(sa), []
    for _ in range(3):
        whole = wire.parse(sender.seal())
        header = struct.pack("!BBHI", ESP, 0, 0, 77)
        packets.append(wire.ipv6(whole.source, whole.destination, ESP, whole.payload, extensions=[(FRAGMENT, header)]))
    return Case("IPv6 fragment headers on whole packets", (sa,), frames(packets))


def _not_esp(sa):
    """Fragmented traffic that is none of ESP's counts once per datagram."""
    packets = []
    for ident, port in ((1, 53), (2, 4500), (3, 500)):
        marker = bytes(4) if port == 4500 else b""
        datagram = wire.udp(sa.source, sa.destination, port, port, marker + bytes(1500))
        packets += wire.fragments(wire.ipv4(sa.source, sa.destination, UDP, datagram), 600, ident)
    packets += wire.fragments(wire.ipv4(sa.source, sa.destination, 1, bytes(1500)), 600, 4)
    return Case("fragments of other traffic", (sa,), frames([*packets, Sender(sa).seal()]))
