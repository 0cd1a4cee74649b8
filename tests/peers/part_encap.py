"""Mixed traffic sealed by `vesper-verify encap`, opened byte for byte by the Python peer and by scapy.

Also looked at: outer headers, sequence numbers, padding, IVs, and that nothing but the selected
packets comes out.
"""

from collections import Counter

import capture
import encap_check
import encap_rules
import matrix
import scapy_peer
import traffic
from receiver import Receiver

ARP = capture.ethernet(bytes.fromhex("0001080006040001") + bytes(20), ether_type=0x0806)
IMPLICIT = "implicit-IV suites have no name in `ip xfrm`, so no line asks encap for them"


def run(verifier, report, quick):
    packets = scapy_packets = 0
    counts = Counter()
    for index, cell in enumerate(matrix.cells(quick)):
        if cell.suite.implicit_iv:
            report.skip(IMPLICIT)
            continue
        sa = cell.association(tfc_pad=300 if cell.mode == "tunnel" and index % 7 == 0 else 0)
        inner = traffic.flows(cell.name, cell.flows(), traffic.LENGTHS[index % 3::3])
        data = _capture(inner, ethernet=index % 2 == 1)
        sealed = verifier.encap(sa.line(), data)
        packets += len(inner)
        faults = _faults(sa, cell.start, inner, sealed)
        for other in verifier.implementations[cell.suite.name][1:]:
            again = verifier.encap(sa.line(), data, other)
            counts[other] += len(inner)
            # The same bytes need no second look; where IVs are random they are others.
            if not faults and again.frames != sealed.frames:
                faults = [f"{other}: {fault}" for fault in _faults(sa, cell.start, inner, again)]
        if not faults and (reason := scapy_peer.lacks(sa)) is None:
            # scapy opens some two hundred packets a second.
            at = scapy_peer.sample(sa, index, inner)
            wire_packet = capture.network_layer(sealed.link_type, sealed.frames[at])[0]
            faults = _scapy_faults(sa, cell.start + 1 + at, inner[at], wire_packet)
            scapy_packets += 1
        elif not faults:
            report.skip(f"{reason}: not opened by scapy, by the Python peer alone")
        report.check(not faults, lambda: f"{cell.name}: {faults[0]} "
                                         f"({len(faults)} in all; {report.keep(cell.name, sa.line(), data)})")
    encap_rules.run(verifier, report)
    report.note(f"{packets} packets sealed by vesper-verify and opened here, {scapy_packets} of them by scapy as well")
    report.note("the same once more by " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def _capture(packets, *, ethernet):
    if not ethernet:
        return capture.write_pcap(capture.RAW, packets)
    # What is not IP is not sealed; a short frame's padding is no part of the packet.
    frames = [capture.ethernet(packet).ljust(60, b"\0") for packet in packets]
    return capture.write_pcap(capture.ETHERNET, [ARP, *frames, ARP])


def _faults(sa, start, inner, sealed):
    if sealed.exit != 0:
        return [f"exit {sealed.exit}: {sealed.stderr[:300]}"]
    wire_packets = [capture.network_layer(sealed.link_type, frame)[0] for frame in sealed.frames]
    if len(wire_packets) != len(inner):
        return [f"{len(wire_packets)} packets came out of {len(inner)}"]
    found = [f"packet {index} of {len(inner[index])} bytes: {fault}"
             for index, data in enumerate(wire_packets)
             for fault in encap_check.faults(sa, start + 1 + index, inner[index], data)]
    if found:
        return found
    receiver = Receiver([sa])
    for data in wire_packets:
        receiver.frame(capture.RAW, data)
    if receiver.inner != inner:
        return [f"opened to other packets than were sealed; counts {dict(receiver.counts)}"]
    return encap_check.iv_faults(sa, wire_packets)


def _scapy_faults(sa, number, inner, data):
    try:
        opened = scapy_peer.open(sa, number, data)
    except Exception as error:
        return [f"scapy: {type(error).__name__} {error}"]
    # Traffic flow confidentiality padding is left in place by scapy.
    if opened[:len(inner)] != inner or opened[len(inner):].strip(b"\0"):
        return [f"scapy opened {len(opened)} bytes {opened[:60].hex()}..., expected {len(inner)} {inner[:60].hex()}..."]
    return []
