"""Packets sealed by the Python peer and by scapy, opened byte for byte by `vesper-verify pcap`."""

import random

import capture
import esp
import matrix
import scapy_peer
import traffic
from receiver import Receiver

LINK_TYPES = (capture.ETHERNET, capture.RAW, capture.LINUX_SLL, capture.LINUX_SLL2)


def run(verifier, report, quick):
    packets = scapy_packets = 0
    for index, cell in enumerate(matrix.cells(quick)):
        rng = random.Random(cell.name)
        if cell.suite.implicit_iv and cell.suite.transform == "ccm":
            report.skip("AES-CCM with implicit IVs has no name in `ip xfrm` and none in Wireshark")
            continue
        sa = cell.association()
        inner = traffic.flows(cell.name, cell.flows(), traffic.LENGTHS[index % 3::3])
        pairs = []
        for offset, packet in enumerate(inner):
            tfc = rng.randrange(200) if cell.mode == "tunnel" and rng.random() < 0.3 else 0
            pairs.append((packet, esp.seal(sa, cell.start + 1 + offset, packet, tfc)))
        if (reason := scapy_peer.lacks(sa)) is None:
            # scapy seals some ninety packets a second.
            packet = inner[scapy_peer.sample(sa, index, inner)]
            pairs.append((packet, scapy_peer.seal(sa, cell.start + 1 + len(inner), packet)))
            scapy_packets += 1
        else:
            report.skip(f"{reason}: sealed by the Python peer alone")
        packets += len(pairs)
        # A row of esp_sa says where the numbers stand at the first packet of the capture.
        pairs = pairs[:cell.suite.implicit_iv] + _reordered(rng, pairs[cell.suite.implicit_iv:])
        link_type = LINK_TYPES[index % len(LINK_TYPES)]
        frames = [capture.FRAMING[link_type](data) for _, data in pairs]
        data = capture.write_pcap(link_type, frames)
        naive = Receiver([sa])
        for frame in frames:
            naive.frame(link_type, frame)
        expected = [packet for packet, _ in pairs]
        assert naive.inner == expected, f"{cell.name}: the Python receiver itself opened {dict(naive.counts)}"
        opened = verifier.pcap(sa.line(), data)
        report.check((opened.exit, opened.inner, opened.counts()) == (0, expected, naive.report()), lambda: (
            f"{cell.name}: exit {opened.exit}, counts {opened.counts()}, expected {naive.report()}, inner packets "
            f"{'equal' if opened.inner == expected else 'differ'}; {opened.stderr[:200]} "
            f"({report.keep(cell.name, sa.line(), data)})"))
    report.note(f"{packets} packets opened by vesper-verify, {scapy_packets} of them sealed by scapy")


def _reordered(rng, packets):
    """Packets as a network delivers them: none is late by more than 16."""
    keyed = [(index + rng.randrange(16), index, packet) for index, packet in enumerate(packets)]
    return [packet for _, _, packet in sorted(keyed, key=lambda entry: entry[:2])]
