"""Outer fragments put together again (RFC 791, RFC 8200 section 4.5; overlaps by RFC 5722)."""

import struct

from wire import Malformed, parse

class Reassembler:
    """Keeps what it is given for ever: captures of tests are short."""

    def __init__(self):
        self.partial = {}

    def add(self, packet, vlans=()):
        """The whole packet if this fragment completes it, else None. What came on other VLANs is kept apart."""
        fragment, data = packet.fragment, packet.payload
        key = (vlans, packet.source, packet.destination, fragment.ident,
               packet.protocol if packet.version == 4 else None)
        parts = self.partial.setdefault(key, {})
        start, end = fragment.offset, fragment.offset + len(data)
        try:
            if self._is_repetition(parts, start, end, data, fragment.more):
                return None
        except Malformed:
            del self.partial[key]
            raise
        parts[start] = (end, packet, fragment.more)
        whole = self._assemble(parts)
        if whole is not None:
            del self.partial[key]
        return whole

    @staticmethod
    def _is_repetition(parts, start, end, data, more):
        """Whether the bytes are all there already; raises Malformed on a contradiction in itself or to another."""
        if (more and len(data) % 8) or end > 65535 or not data:
            raise Malformed("fragment length")
        if not more and any(other_end > end for other_end, _, _ in parts.values()):
            raise Malformed("a last fragment before the end of another")
        known = {}
        for other_start, (_, packet, _) in parts.items():
            known.update(enumerate(packet.payload, other_start))
        overlap = [at for at in range(start, end) if at in known]
        if overlap:
            if len(overlap) == len(data) and all(known[at] == data[at - start] for at in overlap):
                return True
            raise Malformed("fragments overlap")
        if any(not other_more and other_end < end for other_end, _, other_more in parts.values()):
            raise Malformed("a fragment beyond the last one")
        return False

    @staticmethod
    def _assemble(parts):
        expected, data = 0, b""
        for start in sorted(parts):
            end, packet, more = parts[start]
            if start != expected:
                return None
            data += packet.payload
            expected = end
        if more:
            return None
        return parse(_unfragmented(parts[0][1], data))


def _unfragmented(first, data):
    header = bytearray(first.header)
    if first.version == 4:
        struct.pack_into("!H", header, 2, len(header) + len(data))
        header[6] &= 0x40
        header[7] = 0
        header[10:12] = bytes(2)
        whole = parse(bytes(header) + data)
        return whole.with_payload(whole.protocol, data)
    # The fragment header is the last of the chain: what named it now names what followed it.
    named_by = _offset_of_fragment_header_name(first.header)
    header[named_by] = first.protocol
    del header[-8:]
    struct.pack_into("!H", header, 4, len(header) - 40 + len(data))
    return bytes(header) + data


def _offset_of_fragment_header_name(header):
    named_by, at = 6, 40
    while at < len(header) - 8:
        named_by, at = at, at + (header[at + 1] + 1) * 8
    return named_by
