"""What a capture holds: the receiver of one packet after the other, as naive as it gets.

The checks come in this order: IP, reassembly, UDP, minimum length of ESP, SA, alignment, replay, ICV,
trailer, next header, inner header, selector. The first that fails names the count.

Decisions where the meaning of a count leaves room:
- A frame of another network protocol, and an IP packet of another upper-layer protocol, is `not_esp`.
  A frame that ends inside its link-layer header is `malformed`, as is one whose link layer promises
  the other IP version.
- A wrong IPv4 header checksum is `malformed`; 0 means that the sending adapter was to fill it in. A
  UDP checksum is not looked at: captures of a sender have it unfinished, and the ICV proves more. Of
  an inner packet version and lengths are checked, nothing else: it comes out as it was encrypted.
- UDP counts as ESP in UDP if either port is 4500 or a destination port of an SA's `encap` that names
  no 4500; a UDP length below the IP payload cuts what follows (as the kernel does), one beyond it is
  `malformed` on every port.
- In ESP in UDP one byte 0xff is a keepalive, four zero bytes at the start are IKE's marker; what is
  shorter than SPI and sequence number (8 bytes) is `malformed`.
- An SA is found by destination and SPI alone: neither the source address nor whether ESP came in UDP
  takes part.
- Too short for the SA's IV, trailer and ICV is `malformed` before replay is looked at.
- A number that has been authentic is seen, whatever happens to the packet after its ICV.
- Fragments that overlap, lie beyond the last one, or have a length that none can have, are
  `malformed`, and nothing of their datagram is kept. Bytes that are there already and are the same
  are no overlap. Fragments on different VLANs belong to different datagrams.
- Transport mode: any next header but 59 is welcome; the upper layer is not looked into, except by a
  selector, which sees it past IPv6 extension headers.
"""

from collections import Counter

import esp
import wire
from capture import NotIp, Runt, network_layer, vlans
from reassembly import Reassembler
from replay import ReplayWindow
from wire import ESP, IPIP, IPV6, NO_NEXT, UDP, Malformed

DROPS = ("icv", "replay", "malformed", "padding", "dummy", "selector", "no_sa")


class Receiver:
    def __init__(self, associations):
        self.associations = {(sa.spi, sa.destination): sa for sa in associations}
        self.windows = {key: ReplayWindow(sa.window, sa.sequence, sa.esn) for key, sa in self.associations.items()}
        self.ports = {4500} | {sa.encap[1] for sa in associations if sa.encap and 4500 not in sa.encap}
        self.reassembler = Reassembler()
        self.counts = Counter()
        self.inner = []  # opened packets in order

    def frame(self, link_type, frame):
        """Counts one frame; returns the count's name, None for a fragment that completes nothing."""
        try:
            data, promised = network_layer(link_type, frame)
            verdict = self._ip(data, promised, vlans(link_type, frame))
        except NotIp:
            verdict = "not_esp"
        except (Runt, Malformed):
            verdict = "malformed"
        if verdict is not None:
            self.counts[verdict] += 1
        return verdict

    def report(self):
        """The counts as `vesper-verify pcap --json` prints them."""
        dropped = {name: self.counts[name] for name in DROPS}
        return {"packets": self.counts["accepted"] + sum(dropped.values()), "accepted": self.counts["accepted"],
                "dropped": dropped, "not_esp": self.counts["not_esp"]}

    def _ip(self, data, promised, vlans):
        if promised and data and data[0] >> 4 != promised:
            raise Malformed("IP version contradicts the link layer")
        packet = wire.parse(data)
        if packet.fragment:
            packet = self.reassembler.add(packet, vlans)
            if packet is None:
                return None
        if packet.protocol == ESP:
            return self._esp(packet, packet.payload)
        if packet.protocol == UDP:
            return self._udp(packet)
        return "not_esp"

    def _udp(self, packet):
        datagram = packet.payload
        if len(datagram) < 8:
            raise Malformed("UDP header")
        source_port, destination_port, length = (int.from_bytes(datagram[at:at + 2], "big") for at in (0, 2, 4))
        if length < 8 or length > len(datagram):
            raise Malformed("UDP length")
        if not self.ports & {source_port, destination_port}:
            return "not_esp"
        payload = datagram[8:length]
        if payload == b"\xff" or payload[:4] == bytes(4):
            return "not_esp"
        return self._esp(packet, payload)

    def _esp(self, outer, data):
        if len(data) < 8:
            raise Malformed("ESP header")
        spi, low = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        key = (spi, outer.destination)
        sa = self.associations.get(key)
        if sa is None or spi < 256:
            return "no_sa"
        if len(data) < esp.minimum_len(sa.suite) or not esp.is_aligned(sa.suite, len(data)):
            raise Malformed("ESP length")
        window = self.windows[key]
        number = window.number(low)
        if not window.accepts(number):
            return "replay"
        plaintext = esp.open_esp(sa, number, data)
        if plaintext is None:
            return "icv"
        window.mark(number)
        stripped = esp.strip_trailer(plaintext)
        if stripped is None:
            return "padding"
        payload, next_header = stripped
        if next_header == NO_NEXT:
            return "dummy"
        inner = self._tunnel(payload, next_header) if sa.mode == "tunnel" else outer.with_payload(next_header, payload)
        if sa.selector and not sa.selector.matches(wire.parse_leniently(inner)):
            return "selector"
        self.inner.append(inner)
        return "accepted"

    @staticmethod
    def _tunnel(payload, next_header):
        versions = {IPIP: 4, IPV6: 6}
        if next_header not in versions or payload[:1] and payload[0] >> 4 != versions[next_header]:
            raise Malformed("next header")
        packet = wire.parse_base(payload)
        return packet.header + packet.payload
