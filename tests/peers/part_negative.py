"""Hostile captures: every count of `vesper-verify pcap --json` against the naive receiver's, and every inner packet."""

import random
from collections import Counter

import file_rules
import hostile_bits
import hostile_fragments
import hostile_frames
import hostile_inside
import hostile_mutations
import hostile_replay
from receiver import Receiver

SEED = 4303
MAKERS = (hostile_bits, hostile_replay, hostile_inside, hostile_fragments, hostile_frames, hostile_mutations)


def cases(quick):
    for maker in MAKERS:
        yield from maker.cases(random.Random(f"{SEED} {maker.__name__}"), quick)


def run(verifier, report, quick):
    counts, captures = Counter(), 0
    for case in cases(quick):
        naive = _receive(case, len(case.frames))
        counts += naive.counts
        captures += 1
        fault = _fault(verifier, case, len(case.frames))
        report.check(fault is None, lambda: f"{case.name}: {_shortest(verifier, report, case)}")
    file_rules.run(verifier, report)
    report.note(f"{captures} captures, {sum(counts.values())} verdicts: "
                + ", ".join(f"{name} {count}" for name, count in counts.most_common()))


def _receive(case, count):
    receiver = Receiver(case.associations)
    for frame in case.frames[:count]:
        receiver.frame(case.link_type, frame)
    return receiver


def _fault(verifier, case, count):
    """How vesper-verify and the naive receiver differ over the first `count` frames; None if not at all."""
    naive = _receive(case, count)
    opened = verifier.pcap(case.sa_text(), case.data(count))
    expected = naive.report()
    if opened.json is None or opened.exit not in (0, 1):
        return f"exit {opened.exit}: {opened.stderr[:300]}"
    if opened.counts() != expected:
        return f"counts {_differing(opened.counts(), expected)}"
    if (opened.inner or []) != naive.inner:
        return f"counts agree, but the {len(naive.inner)} inner packets differ"
    if (wanted := _exit(expected)) is not None and opened.exit != wanted:
        return f"exit {opened.exit}, expected {wanted} for {expected}"
    return None


def _exit(counts):
    """0 if something was opened and nothing dropped but dummies, 1 if not; a dummy alone may be either."""
    if counts["accepted"] + counts["dropped"]["dummy"] < counts["packets"] or counts["packets"] == 0:
        return 1
    return 0 if counts["accepted"] else None


def _differing(counts, expected):
    flat = {key: value for key, value in counts.items() if key != "dropped"} | (counts["dropped"] or {})
    wanted = {key: value for key, value in expected.items() if key != "dropped"} | expected["dropped"]
    return ", ".join(f"{key} {flat.get(key)} (expected {wanted.get(key)})"
                     for key in sorted(flat.keys() | wanted.keys()) if flat.get(key) != wanted.get(key))


def _shortest(verifier, report, case):
    """The first frame over which the two disagree, as text."""
    low, high = 0, len(case.frames)
    while high - low > 1:
        middle = (low + high) // 2
        if _fault(verifier, case, middle) is None:
            low = middle
        else:
            high = middle
    receiver = Receiver(case.associations)
    verdicts = [receiver.frame(case.link_type, frame) for frame in case.frames[:high]]
    frame = case.frames[high - 1]
    return (f"from frame {high} on ({verdicts[-1]} expected, {frame[:80].hex()}{'...' if len(frame) > 80 else ''}): "
            f"{_fault(verifier, case, high)} ({report.keep(case.name, case.sa_text(), case.data(high))})")
