"""Random changes to a mixed capture: bytes, lengths, order, repetition, and mixtures of all."""

import capture
import wire
from capture import ethernet
from hostile import Case, Sender, association, echo_packet, packet, refragmented, tcp_packet
from sa import Selector
from wire import TCP, UDP


def associations():
    return (
        association("aes128gcm16", "tunnel", "v4", spi=0x1001, esn=True, start=(1 << 32) - 40),
        association("aes256-sha512", "transport", "v6", spi=0x1002, window=32),
        association("chacha20poly1305", "tunnel", "v6+udp", spi=0x1003, window=128),
        association("null-sha256", "transport", "v4+udp", spi=0x1004, window=1024),
        association("aes128ccm8", "tunnel", "v4", spi=0x1005, selector=Selector(protocol=UDP)),
        association("aes128gmac", "tunnel", "v6", spi=0x1006, window=0, selector=Selector(protocol=TCP)),
    )


def mixed(rng, count, small=False):
    """`count` good frames of all associations, some of them in fragments."""
    senders = [Sender(sa) for sa in associations()]
    frames = []
    while len(frames) < count:
        sender = rng.choice(senders)
        size = rng.choice((0, 5, 40)) if small else rng.choice((0, 5, 40, 300, 1200))
        inner = rng.choice((packet, tcp_packet, echo_packet))(sender.sa, size)
        data = sender.seal(inner)
        parts = wire.fragments(data, 256, len(frames)) if rng.random() < 0.15 else [data]
        vlans = [(0x8100, 7)] if rng.random() < 0.2 else []
        frames += [ethernet(part, vlans=vlans) for part in parts]
    return frames


def cases(rng, quick):
    for index in range(3 if quick else 20):
        good = mixed(rng, 120)
        yield Case(f"mixed traffic {index}", associations(), tuple(good))
        yield Case(f"mutated bytes {index}", associations(), tuple(_bytes(rng, frame) for frame in good))
        yield Case(f"shuffled, repeated and cut {index}", associations(), tuple(_order(rng, good)))
        yield Case(f"contradicting fragments {index}", associations(), tuple(_contradicting(rng, good)))
        small = mixed(rng, 120, small=True)
        headers = [_bytes(rng, frame, 54) for frame in small]
        yield Case(f"mutated headers {index}", associations(), tuple(headers))
        checked = [_checked(_bytes(rng, frame, 34)) for frame in small]
        yield Case(f"mutated headers with right checksums {index}", associations(), tuple(checked))


def _contradicting(rng, frames):
    """Datagrams in pieces of which some are there again with another place, length or end."""
    result = []
    for frame in frames:
        packet = wire.parse(capture.network_layer(capture.ETHERNET, frame)[0])
        # Extension headers stay whole; more than forty pieces at a time are more than a receiver has to keep.
        if packet.fragment or not 64 <= len(packet.payload) or rng.random() < 0.5:
            result.append(frame)
            continue
        size = rng.choice([size for size in (8, 16, 64, 256) if size < len(packet.payload) <= 40 * size])
        parts = wire.fragments(packet.header + packet.payload, size, rng.randrange(4))
        for part in rng.choices(parts, k=rng.randrange(3)):
            fragment, payload = wire.parse(part).fragment, wire.parse(part).payload
            parts.insert(rng.randrange(len(parts) + 1), refragmented(
                part, offset=max(0, fragment.offset + rng.choice((-8, 0, 8, 16))), more=rng.random() < 0.6,
                payload=payload[:rng.choice((8, 16, 64, len(payload)))]))
        if rng.random() < 0.4:
            rng.shuffle(parts)
        result += [ethernet(part) for part in parts]
    return result


def _bytes(rng, frame, end=None):
    """Changes some bytes of two frames in three."""
    changed = bytearray(frame)
    if rng.random() < 0.67:
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(14, min(len(changed), end or len(changed)))
            changed[at] = rng.choice((0, 255, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8)))
    return bytes(changed)


def _checked(frame):
    """A right IPv4 header checksum, where there is such a header."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 34:
        return frame
    end = 14 + (frame[14] & 15) * 4
    if not 34 <= end <= len(frame):
        return frame
    header = frame[14:24] + b"\0\0" + frame[26:end]
    return frame[:24] + wire.checksum(header).to_bytes(2, "big") + frame[26:]


def _order(rng, frames):
    result = [frame for frame in frames for _ in range(rng.choice((1, 1, 1, 2)))]
    result = [frame[:rng.randrange(len(frame))] if rng.random() < 0.05 else frame for frame in result]
    for _ in range(len(result) // 2):
        left, right = rng.randrange(len(result)), rng.randrange(len(result))
        if abs(left - right) < 20:
            result[left], result[right] = result[right], result[left]
    return result
