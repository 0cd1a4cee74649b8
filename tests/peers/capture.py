"""Capture files, read and written: pcap and pcapng in both byte orders; and link-layer frames."""

import struct

NULL, ETHERNET, RAW, LINUX_SLL, IPV4, IPV6, LINUX_SLL2 = 0, 1, 101, 113, 228, 229, 276
ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
VLAN_TYPES = (0x8100, 0x88A8, 0x9100)


def read_pcap(data):
    """Link type and frames of a classic pcap file."""
    magic = data[:4]
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">",
             b"\xa1\xb2\x3c\x4d": ">"}[magic]
    (link_type,) = struct.unpack_from(order + "I", data, 20)
    frames, at = [], 24
    while at < len(data):
        captured, original = struct.unpack_from(order + "II", data, at + 8)
        assert at + 16 + captured <= len(data), f"record at {at} reaches beyond the file"
        assert captured == original, f"record at {at}: {captured} bytes of {original}"
        frames.append(data[at + 16:at + 16 + captured])
        at += 16 + captured
    return link_type & 0xFFFF, frames


def write_pcap(link_type, frames, *, order="<", nanoseconds=False, snaplen=262144, originals=None):
    """`originals`: the frames' lengths on the wire, if the snaplen has cut them."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    chunks = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link_type)]
    for index, frame in enumerate(frames):
        original = originals[index] if originals else len(frame)
        chunks.append(struct.pack(order + "IIII", 1700000000 + index // 1000, index % 1000, len(frame), original))
        chunks.append(frame)
    return b"".join(chunks)


def write_pcapng(interfaces, frames, *, order="<", nanoseconds=False, simple=False):
    """`interfaces`: link types; `frames`: pairs of an interface's index and a frame.

    `simple` writes simple packet blocks, which know interface 0 alone.
    """
    def block(kind, body):
        body += bytes(-len(body) % 4)
        length = struct.pack(order + "I", 12 + len(body))
        return struct.pack(order + "I", kind) + length + body + length

    def option(code, value):
        return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)

    end = option(0, b"")
    chunks = [block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + option(4, b"peers") + end)]
    resolution = option(9, bytes([9])) + end if nanoseconds else b""
    for link_type in interfaces:
        chunks.append(block(1, struct.pack(order + "HHI", link_type, 0, 0) + resolution))
    for index, (interface, frame) in enumerate(frames):
        if simple:
            chunks.append(block(3, struct.pack(order + "I", len(frame)) + frame))
            continue
        head = struct.pack(order + "IIIII", interface, 0x60A24, index, len(frame), len(frame))
        chunks.append(block(6, head + frame))
    # A block that readers do not know has to be skipped.
    chunks.append(block(0x0BAD, b"unknown"))
    return b"".join(chunks)


def ethernet(packet, *, vlans=(), ether_type=None):
    """A frame around an IP packet; `vlans`: pairs of a tag protocol and a VLAN number."""
    if ether_type is None:
        ether_type = ETHERTYPE_IPV6 if packet[:1] and packet[0] >> 4 == 6 else ETHERTYPE_IPV4
    tags = b"".join(struct.pack("!HH", tag, vlan) for tag, vlan in vlans)
    return bytes.fromhex("020000000002020000000001") + tags + struct.pack("!H", ether_type) + packet


def sll(packet):
    ether_type = ETHERTYPE_IPV6 if packet[0] >> 4 == 6 else ETHERTYPE_IPV4
    return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), ether_type) + packet


def sll2(packet):
    ether_type = ETHERTYPE_IPV6 if packet[0] >> 4 == 6 else ETHERTYPE_IPV4
    return struct.pack("!HHIHBB8s", ether_type, 0, 1, 1, 0, 6, bytes(8)) + packet


FRAMING = {ETHERNET: ethernet, RAW: bytes, LINUX_SLL: sll, LINUX_SLL2: sll2, IPV4: bytes, IPV6: bytes}


class NotIp(Exception):
    """A frame of another network protocol."""


class Runt(Exception):
    """A frame that ends inside its link-layer header."""


def network_layer(link_type, frame):
    """What the link layer carries, and the IP version that it promises (None: it says nothing)."""
    if link_type == RAW:
        return frame, None
    if link_type in (IPV4, IPV6):
        return frame, 4 if link_type == IPV4 else 6
    if link_type == ETHERNET:
        type_at, start = 12, 14
    elif link_type == LINUX_SLL:
        type_at, start = 14, 16
    elif link_type == LINUX_SLL2:
        type_at, start = 0, 20
    else:
        raise ValueError(f"link type {link_type}")
    if len(frame) < start:
        raise Runt
    (ether_type,) = struct.unpack_from("!H", frame, type_at)
    while ether_type in VLAN_TYPES:
        if len(frame) < start + 4:
            raise Runt
        (ether_type,) = struct.unpack_from("!H", frame, start + 2)
        start += 4
    if ether_type == ETHERTYPE_IPV4:
        return frame[start:], 4
    if ether_type == ETHERTYPE_IPV6:
        return frame[start:], 6
    raise NotIp


def vlans(link_type, frame):
    """The VLAN numbers of a frame that `network_layer` understood."""
    if link_type != ETHERNET:
        return ()
    numbers, at = [], 12
    while int.from_bytes(frame[at:at + 2], "big") in VLAN_TYPES:
        numbers.append(int.from_bytes(frame[at + 2:at + 4], "big") & 0xFFF)
        at += 4
    return tuple(numbers)
