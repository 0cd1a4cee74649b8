"""`vesper-verify encap` against a plain receiver and against scapy: mixed traffic through every
suite, mode, carrier, with and without extended sequence numbers; the inner packets must come
back byte for byte. Then `vesper-verify pcap` must open the same file to the same packets."""

import itertools
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import Raw

import plain_esp

A4, B4, A6, B6 = "192.0.2.1", "198.51.100.2", "2001:db8:a::1", "2001:db8:b::2"
FAR_FUTURE = 2**48 + 5


def data(size):
    return bytes(at * 7 & 0xFF for at in range(size))


def traffic4():
    ip = {"src": A4, "dst": B4}
    for size in (0, 1, 2, 3, 13, 14, 15, 16, 17, 56, 500, 1400, 1473, 4000):
        yield IP(ttl=64, id=size, **ip) / UDP(sport=5000, dport=53) / Raw(data(size))
    yield IP(flags="DF", tos=0xB9, **ip) / TCP(sport=1, dport=80, flags="S")
    yield IP(ttl=1, tos=3, **ip) / ICMP() / Raw(data(40))
    yield IP(options=[IPOption_Router_Alert()], **ip) / UDP(dport=7) / Raw(data(9))
    yield IP(proto=47, **ip) / Raw(data(21))


def traffic6():
    ip = {"src": A6, "dst": B6}
    for size in (0, 1, 2, 3, 13, 16, 56, 1400, 1453, 4000):
        yield IPv6(hlim=64, fl=size, **ip) / UDP(sport=5000, dport=53) / Raw(data(size))
    yield IPv6(tc=0x2B, **ip) / TCP(sport=1, dport=80, flags="PA") / Raw(data(99))
    yield IPv6(**ip) / ICMPv6EchoRequest(data=data(33))
    yield IPv6(**ip) / IPv6ExtHdrHopByHop() / UDP(dport=7) / Raw(data(5))
    yield IPv6(**ip) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=[B6]) / UDP() / Raw(b"r")


def frames(packets):
    """The packets as Ethernet frames, short ones padded, every third one with a VLAN tag; ARP
    and LLDP between them, which are not to be copied."""
    for number, packet in enumerate(packets):
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        tag = b"\x81\x00\x00\x07" if number % 3 == 2 else b""
        frame = bytes(12) + tag + kind + packet
        yield frame + bytes(max(0, 60 - len(frame)))
        if number % 5 == 0:
            yield bytes(12) + b"\x08\x06" + bytes(46)
            yield bytes(12) + b"\x88\xcc" + bytes(46)


def write_pcap(path, packets):
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for number, packet in enumerate(packets):
            out.write(struct.pack("<IIII", 1_700_000_000 + number, 5, len(packet), len(packet)))
            out.write(packet)


def read_pcap(path):
    content = pathlib.Path(path).read_bytes()
    magic, _, _, _, _, _, link = struct.unpack("<IHHiIII", content[:24])
    assert (magic, link) == (0xA1B2C3D4, 101)
    packets, at = [], 24
    while at < len(content):
        _, _, captured, original = struct.unpack("<IIII", content[at : at + 16])
        assert captured == original
        packets.append(content[at + 16 : at + 16 + captured])
        at += 16 + captured
    return packets


def scapy_association(suite, key, mac_key, spi, outer, esn, udp):
    """scapy's idea of the association; None where it has no such suite."""
    crypt = {
        "gcm": "AES-GCM",
        "gmac": "AES-NULL-GMAC",
        "ccm": "AES-CCM",
        "chapoly": "CHACHA20-POLY1305",
        "cbc": "AES-CBC",
        "ctr": "AES-CTR",
        "null": "NULL",
    }[suite.kind]
    if suite.kind == "gcm" and suite.icv != 16:
        return None  # always takes 16 bytes
    words = {"spi": spi, "crypt_algo": crypt, "esn_en": esn}
    if key:
        words["crypt_key"] = key
    if suite.kind == "ccm":
        words["crypt_icv_size"] = suite.icv
    if suite.mac is not None:
        words["auth_algo"] = {
            "sha1": "HMAC-SHA1-96",
            "sha256": "SHA2-256-128",
            "sha384": "SHA2-384-192",
            "sha512": "SHA2-512-256",
        }[suite.mac]
        words["auth_key"] = mac_key
    if outer is not None:
        words["tunnel_header"] = outer
    if udp:
        words["nat_t_header"] = UDP(sport=udp[0], dport=udp[1])
    return SecurityAssociation(ESP, **words)


def scapy_open(association, packet, sequence):
    parsed = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    return bytes(association.decrypt(parsed, esn=sequence >> 32))


def main(verify):
    conf.verb = 0
    generator = random.Random(4303)
    four = [bytes(packet) for packet in traffic4()]
    six = [bytes(packet) for packet in traffic6()]
    mixed = [p for pair in itertools.zip_longest(four, six) for p in pair if p is not None]
    cells = opened = by_scapy = 0
    with tempfile.TemporaryDirectory() as directory:
        path = lambda name: f"{directory}/{name}"
        write_pcap(path("mixed.pcap"), frames(mixed))
        write_pcap(path("four.pcap"), frames(four))
        write_pcap(path("six.pcap"), frames(six))
        for suite, tunnel, version, udp, esn in itertools.product(
            plain_esp.suites(),
            (True, False),
            (4, 6),
            (None, (4500, 4500)),
            (False, True),
        ):
            if tunnel:
                given, packets = "mixed", mixed
            else:
                given, packets = ("four", four) if version == 4 else ("six", six)
            source, destination = (A4, B4) if version == 4 else (A6, B6)
            key = generator.randbytes(suite.key + suite.salt)
            mac_key = generator.randbytes(suite.mac_key)
            spi = generator.randrange(256, 2**32)
            first = generator.choice([1, 2**32 - 3, FAR_FUTURE]) if esn else 1
            line = (
                f"ip xfrm state add src {source} dst {destination} proto esp spi {spi:#x} "
                f"mode {'tunnel' if tunnel else 'transport'} replay-window 64 "
                + suite.xfrm(key, mac_key)
            )
            if udp:
                line += f" encap espinudp {udp[0]} {udp[1]} 0.0.0.0"
            if esn:
                last = first - 1
                for word in ("replay-oseq", "replay-seq"):
                    line += f" {word} {last & 0xFFFFFFFF:#x} {word}-hi {last >> 32:#x}"
                line += " flag esn"
            cell = f"{suite.name}: {line}"
            pathlib.Path(path("sa")).write_text(line + "\n")
            run(verify, "encap", "--sa", path("sa"), "--json", path(f"{given}.pcap"), path("out"))
            sealed = read_pcap(path("out"))
            assert len(sealed) == len(packets), f"{cell}: {len(sealed)} packets"
            outer = None
            if tunnel:
                outer = IP(src=source, dst=destination) if version == 4 else IPv6(
                    src=source, dst=destination
                )
            association = scapy_association(suite, key, mac_key, spi, outer, esn, udp)
            for number, (packet, expected) in enumerate(zip(sealed, packets)):
                sequence = first + number
                try:
                    inner, addresses = plain_esp.open_packet(
                        suite, key, mac_key, packet, spi, sequence, esn, udp, tunnel
                    )
                except Exception as error:
                    raise SystemExit(f"{cell}: packet {number}: {error!r}") from error
                assert inner == expected, f"{cell}: packet {number} differs"
                if tunnel:
                    assert addresses == [source, destination], cell
                opened += 1
            # scapy is slow: a few packets of each cell. In transport mode it does not find ESP
            # behind IPv6 extension headers.
            for number in (0, 3, 9) if association else ():
                got = scapy_open(association, sealed[number], first + number)
                assert got == packets[number], f"{cell}: packet {number} differs for scapy"
                by_scapy += 1
            report = run(
                verify, "pcap", "--sa", path("sa"), "--write", path("in"), "--json", path("out")
            )
            assert report["accepted"] == len(packets) == report["packets"], cell
            assert read_pcap(path("in")) == packets, f"{cell}: not opened to the same packets"
            cells += 1
    print(
        f"encap: {cells} combinations of suite, mode, carrier and sequence number, "
        f"{opened} packets opened by plain ESP, {by_scapy} by scapy"
    )


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command}: exit status {done.returncode}: {done.stderr}{done.stdout[:2000]}")
    return json.loads(done.stdout)


main(sys.argv[1])
