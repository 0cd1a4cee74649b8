"""Captures that real peers emitted: the receiver here and vesper-verify open each to the expected bytes."""

import json
import os
from pathlib import Path

import capture
import sa as associations
from receiver import Receiver
from report import ROOT

BUILT_IN = ROOT / "vectors" / "data" / "captures"


def directory():
    """Where the cases are; None if nowhere."""
    for candidate in (os.environ.get("VESPER_CAPTURES"), BUILT_IN):
        if candidate and any(Path(candidate).glob("*.expect.json")):
            return Path(candidate)
    return None


def cases():
    """Name, text of the .sa, bytes of the capture, and the expectation of each case."""
    for expect in sorted(directory().glob("*.expect.json")):
        name = expect.name.removesuffix(".expect.json")
        yield (name, expect.with_name(f"{name}.sa").read_text(), expect.with_name(f"{name}.pcap").read_bytes(),
               json.loads(expect.read_text()))


def receive(sa_text, data):
    """The naive receiver after a whole capture."""
    receiver = Receiver(associations.read_file(sa_text))
    link_type, frames = capture.read_pcap(data)
    for frame in frames:
        receiver.frame(link_type, frame)
    return receiver


def run(verifier, report, quick):
    if directory() is None:
        report.fail(f"no captures in {BUILT_IN} or $VESPER_CAPTURES")
        return
    packets = 0
    for name, sa_text, data, expect in cases():
        inner = [bytes.fromhex(packet) for packet in expect["inner"]]
        packets += len(inner)
        naive = receive(sa_text, data)
        report.check(naive.inner == inner, f"{name}: the Python receiver opened {len(naive.inner)} packets, "
                                           f"not the {len(inner)} expected ones")
        opened = verifier.pcap(sa_text, data)
        counts = naive.report()
        report.check(opened.inner == inner and opened.counts() == counts, lambda: (
            f"{name}: counts {opened.counts()}, expected {counts}; inner packets "
            f"{'equal' if opened.inner == inner else 'differ'}; {opened.stderr[:200]}"))
        wanted = 0 if counts["accepted"] + counts["dropped"]["dummy"] == counts["packets"] else 1
        report.check(opened.exit == wanted, f"{name}: exit {opened.exit}, expected {wanted}")
    report.note(f"{packets} inner packets")
