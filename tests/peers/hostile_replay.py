"""Sequence numbers around the edges of windows, repeated, out of order and at the ends of the number space."""

import esp
from hostile import Case, association, frames, packet

WINDOWS = (32, 33, 64, 96, 128, 1024, 4096, 65536)
WRAP = 1 << 32
# Kind, extended numbers, and the highest number received before the capture begins.
STARTS = (
    ("from nothing", False, 0),
    ("esn off", False, 100_000),
    ("end of the 32-bit numbers", False, WRAP - 20),
    ("esn from nothing", True, 0),
    ("esn", True, 3 * WRAP + 200_000),
    ("esn across 2^32", True, 7 * WRAP - 3),
    ("esn just behind 2^32", True, 7 * WRAP + 5),
    ("end of the 64-bit numbers", True, WRAP * WRAP - 30),
)


def cases(rng, quick):
    for window in WINDOWS[::3] if quick else WINDOWS:
        for kind, esn, start in STARTS:
            sa = association("aes128gcm16", "tunnel", "v4", esn=esn, start=start, window=window)
            name = f"window {window}, {kind}"
            yield _case(f"replays at the edges, {name}", sa, _edges(sa))
            for walk in range(1 if quick else 3):
                yield _case(f"random walk {walk}, {name}", sa, _walk(rng, sa))
            yield _case(f"forged numbers, {name}", sa, _forged(rng, sa))
            yield _case(f"old packets after many forged ones, {name}", sa, _siege(sa))
    off = association("aes128gcm16", "tunnel", "v4", window=0)
    yield _case("no replay protection", off, [(number, True) for number in (5, 5, 1, 0, 1, 900, 5, 0xFFFFFFFF, 2, 0)])
    shared = [association("aes128gcm16", "tunnel", "v4", spi=0x1000 + index) for index in range(3)]
    yield Case("each association has its window", tuple(shared), frames(
        [_sealed(sa, number) for number in (1, 1, 2, 1, 3, 2) for sa in shared]))


def _sealed(sa, number, authentic=True):
    data = esp.carry(sa, esp.seal_payload(sa, number, packet(sa, 8), 4))
    return data if authentic else data[:-1] + bytes([data[-1] ^ 1])


def _case(name, sa, numbers):
    """`numbers`: pairs of a sequence number and whether its packet is authentic."""
    space = WRAP * WRAP if sa.esn else WRAP
    return Case(name, (sa,), frames([_sealed(sa, number, authentic) for number, authentic in numbers
                                     if 0 <= number < space]))


def _edges(sa):
    """Left edge and one to either side, duplicates, number 0, jumps that empty the window."""
    top, window = sa.sequence, sa.window
    numbers = [0, top, top, top + 1, top + 1, top, 0]
    top += 1
    for jump in (2, 5, window - 1, window, window + 1, 2 * window + 3, 1):
        numbers += [top - window + 1, top - window, top - window - 1, top - window + 2]
        top += jump
        numbers += [top, top, top - 1, top - 1, top - window // 2, top - window + 1, top - window + 1, top - window,
                    top - window - 1, 0]
    return [(number, True) for number in numbers]


def _walk(rng, sa):
    """Mostly forward, often back into the window, at times far out of it."""
    top, window, numbers = sa.sequence, sa.window, []
    for _ in range(150):
        kind = rng.random()
        if kind < 0.45:
            number = top + rng.choice((1, 1, 2, 3, 17, rng.randrange(1, 2 * window + 2)))
        elif kind < 0.9:
            number = top - rng.randrange(0, window + 3)
        elif kind < 0.95 and numbers:
            number = rng.choice(numbers)
        else:
            number = top - rng.randrange(window, 3 * window)
        numbers.append(number)
        top = max(top, number)
    return [(number, True) for number in numbers]


def _forged(rng, sa):
    """Packets that are not authentic move nothing, wherever their numbers are."""
    top, window, numbers = sa.sequence, sa.window, []
    for step in range(30):
        numbers.append((top + rng.choice((1, window, 5 * window, 1 << 20, 1 << 31)), False))
        numbers.append((top - rng.randrange(window), False))
        numbers.append((top + 1, True))
        top += 1
        numbers.append((top, step % 2 == 0))
    return numbers


def _siege(sa):
    """Many failures in a row change nothing for packets from before: resynchronisation (A3) looks forward alone."""
    top, window = sa.sequence, sa.window
    forged = [(top + 5, False)] * 40
    old = [(number, True) for number in (top - window, top - window - 1, top - 2 * window, top - 70_000, top - WRAP, 0, 1)]
    return [*forged, *old, *forged, (top + 1, True), *old, (top + 1, True), (top + 6, True), (top + 5, True)]
