"""What a sealed packet has to look like from outside, field by field."""

import esp
import wire
from wire import ESP, UDP

HOP_LIMIT = 64


def faults(sa, number, inner, data):
    """Everything that is wrong with the wire packet `data` around `inner`; empty if nothing is."""
    try:
        outer = wire.parse(data)
    except wire.Malformed as error:
        return [f"outer packet malformed: {error}"]
    found = []

    def expect(what, value, expected):
        if value != expected:
            found.append(f"{what} is {value!r:.200}, expected {expected!r:.200}")

    expect("outer length", len(outer.header) + len(outer.payload), len(data))
    expect("fragment", outer.fragment, None)
    if outer.version == 4:
        expect("outer header checksum", wire.checksum(outer.header), 0)
    packet = wire.parse_leniently(inner)
    if sa.mode == "tunnel":
        _tunnel_header(expect, sa, packet, outer)
    esp_packet = _udp(expect, sa, outer) if sa.encap else outer.payload
    expect("outer protocol", outer.protocol, UDP if sa.encap else ESP)
    expect("SPI", int.from_bytes(esp_packet[:4], "big"), sa.spi)
    expect("sequence number", int.from_bytes(esp_packet[4:8], "big"), number & 0xFFFFFFFF)
    if found:
        return found
    plaintext = esp.open_esp(sa, number, esp_packet)
    if plaintext is None:
        return [f"ICV wrong for sequence number {number:#x}"]
    stripped = esp.strip_trailer(plaintext)
    if stripped is None:
        return [f"padding is not 1, 2, 3...: trailer {plaintext[-18:].hex()}"]
    payload, _ = stripped
    expect("pad length", plaintext[-2], len(esp.padding(sa.suite, len(payload))))
    if sa.mode == "tunnel":
        expect("payload", payload, inner + bytes(max(sa.tfc_pad - len(inner), 0)))
    return found


def _tunnel_header(expect, sa, inner, outer):
    expect("outer source", outer.source, sa.source)
    expect("outer destination", outer.destination, sa.destination)
    # RFC 4301 section 5.1.2.1 and RFC 6040 section 4.1 (normal mode): DSCP and ECN are copied.
    expect("outer traffic class", outer.traffic_class, inner.traffic_class)
    expect("outer hop limit", outer.hop_limit, HOP_LIMIT)
    # RFC 4301 section 8.1: DF is copied; IPv6 routers never fragment.
    if outer.version == 4:
        expect("outer DF", outer.dont_fragment, inner.dont_fragment)
    expect("outer header length", len(outer.header), 20 if outer.version == 4 else 40)


def _udp(expect, sa, outer):
    datagram = outer.payload
    expect("UDP ports", (int.from_bytes(datagram[:2], "big"), int.from_bytes(datagram[2:4], "big")), sa.encap)
    expect("UDP length", int.from_bytes(datagram[4:6], "big"), len(datagram))
    if outer.version == 4:
        # RFC 3948 section 2.1: transmitted as zero.
        expect("UDP checksum", datagram[6:8], bytes(2))
    else:
        # RFC 8200 section 8.1: not optional over IPv6.
        expect("UDP checksum is there", datagram[6:8] != bytes(2), True)
        expect("UDP checksum over all", wire.transport_checksum(outer.source, outer.destination, UDP, datagram), 0)
    return datagram[8:]


def iv_faults(sa, packets):
    """Repeated IVs, and CBC IVs that somebody could foresee (RFC 3602 section 3)."""
    bodies = [wire.parse(data).payload[8 if sa.encap else 0:][8:] for data in packets]
    length = sa.suite.iv_len
    ivs = [body[:length] for body in bodies]
    if length == 0:
        return []
    found = [] if len(set(ivs)) == len(ivs) else ["an IV was used twice"]
    if sa.suite.transform == "cbc":
        blocks = {body[-sa.suite.icv_len - 16:-sa.suite.icv_len] for body in bodies}
        if blocks & set(ivs):
            found.append("a CBC IV is the last ciphertext block of a packet")
        ones = sum(byte.bit_count() for iv in ivs for byte in iv) / (8 * length * len(ivs))
        steps = {int.from_bytes(after, "big") - int.from_bytes(before, "big") for before, after in zip(ivs, ivs[1:])}
        # 20 IVs are 2,560 bits: half of them give or take 7 standard deviations.
        if not 0.43 < ones < 0.57 or len(steps) < len(ivs) - 1:
            found.append(f"CBC IVs look predictable: {ivs[0].hex()}, {ivs[1].hex()}...")
    return found
