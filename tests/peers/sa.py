"""Security associations, and the two notations of them: `ip xfrm state add` and Wireshark's `esp_sa`."""

import ipaddress
import shlex
from dataclasses import dataclass

from suites import SUITES, XFRM_NAMES, Suite
from wire import ICMP, ICMPV6, TCP, UDP, address

PORT_PROTOCOLS = (TCP, UDP, 132, 33, 136)


@dataclass(frozen=True)
class Selector:
    source: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    destination: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    protocol: int | None = None
    source_port: int | None = None  # or ICMP type
    destination_port: int | None = None  # or ICMP code

    def matches(self, packet):
        """Whether the IP packet (`wire.IpPacket`) is inside. Ports of later fragments are unknown and match none."""
        if self.source and packet.source not in self.source:
            return False
        if self.destination and packet.destination not in self.destination:
            return False
        if self.protocol is not None and packet.protocol != self.protocol:
            return False
        ports = _ports(packet)
        return ((self.source_port is None or self.source_port == ports[0])
                and (self.destination_port is None or self.destination_port == ports[1]))

    def words(self):
        words = ["sel"]
        icmp = self.protocol in (ICMP, ICMPV6)
        for key, value in (("src", self.source), ("dst", self.destination), ("proto", self.protocol),
                           ("type" if icmp else "sport", self.source_port),
                           ("code" if icmp else "dport", self.destination_port)):
            if value is not None:
                words += [key, str(value)]
        return " ".join(words)


def _ports(packet):
    if packet.fragment and packet.fragment.offset:
        return None, None
    if packet.protocol in PORT_PROTOCOLS and len(packet.payload) >= 4:
        return int.from_bytes(packet.payload[:2], "big"), int.from_bytes(packet.payload[2:4], "big")
    if packet.protocol in (ICMP, ICMPV6) and len(packet.payload) >= 2:
        return packet.payload[0], packet.payload[1]
    return None, None


@dataclass(frozen=True)
class Sa:
    suite: Suite
    key: bytes  # with the salt
    auth_key: bytes
    spi: int
    source: ipaddress.IPv4Address | ipaddress.IPv6Address
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address
    mode: str = "tunnel"
    encap: tuple[int, int] | None = None  # UDP source and destination port
    esn: bool = False
    window: int = 0  # 0: no replay protection
    sequence: int = 0  # highest number received
    last_sent: int = 0
    selector: Selector | None = None
    tfc_pad: int = 0

    def line(self):
        """The association as an `ip xfrm state` line; with implicit IVs as a Wireshark row, which has no AES-CCM."""
        algorithm = self.suite.algorithm_words(self.key, self.auth_key)
        if algorithm is None:
            return self._wireshark_row()
        words = [f"ip xfrm state add src {self.source} dst {self.destination} proto esp spi {self.spi:#x}",
                 f"reqid 1 mode {self.mode}"]
        if self.esn:
            words.append("flag esn")
        if self.window:
            words.append(f"replay-window {self.window}")
        for name, value in (("seq", self.sequence), ("oseq", self.last_sent)):
            if value:
                words.append(f"replay-{name} {value & 0xFFFFFFFF:#x}")
                if value >> 32:
                    words.append(f"replay-{name}-hi {value >> 32:#x}")
        words.append(algorithm)
        if self.encap:
            words.append(f"encap espinudp {self.encap[0]} {self.encap[1]} 0.0.0.0")
        if self.tfc_pad:
            words.append(f"tfcpad {self.tfc_pad}")
        if self.selector:
            words.append(self.selector.words())
        return " ".join(words)

    def _wireshark_row(self):
        names = {"gcm": "AES-GCM with IIV and 16 octet ICV [RFC4106 & RFC8750]",
                 "chacha": "ChaCha20 with Poly1305 and IIV [RFC7634 & RFC8750]"}
        columns = [f"IPv{self.source.version}", self.source, self.destination, f"{self.spi:#010x}",
                   names[self.suite.transform], f"0x{self.key.hex()}", "NULL", ""]
        columns += ["64-bit", f"{self.sequence >> 32:#x}"] if self.esn else ["32-bit", "0x0"]
        return ",".join(f'"{column}"' for column in columns)


def read_file(text):
    """The associations of a file of `ip xfrm state add` lines."""
    lines = (line.strip() for line in text.splitlines())
    return [parse_line(line) for line in lines if line and not line.startswith("#")]


def parse_line(line):
    words = shlex.split(line)
    assert words[:4] == ["ip", "xfrm", "state", "add"], line
    words = words[4:]
    fields, flags = {}, []
    while words:
        word = words.pop(0)
        if word in ("src", "dst", "proto", "spi", "mode", "reqid", "replay-window", "replay-seq", "replay-seq-hi",
                    "replay-oseq", "replay-oseq-hi", "tfcpad"):
            fields[word] = words.pop(0)
        elif word in ("flag", "extra-flag"):
            flags.append(words.pop(0))
        elif word in ("aead", "auth-trunc"):
            fields[word] = (words.pop(0), _key(words.pop(0)), int(words.pop(0)))
        elif word == "enc":
            fields[word] = (words.pop(0), _key(words.pop(0)))
        elif word == "encap":
            assert words.pop(0) == "espinudp", line
            fields[word] = (int(words.pop(0)), int(words.pop(0)))
            words.pop(0)
        elif word == "sel":
            fields[word] = _selector(words)
        else:
            raise ValueError(f"unknown word {word!r} in {line!r}")
    assert fields["proto"] == "esp", line

    def number(name):
        return int(fields.get(name, "0"), 0)

    suite, key, auth_key = _algorithms(fields)
    return Sa(suite, key, auth_key, number("spi"), address(fields["src"]), address(fields["dst"]),
              fields["mode"], fields.get("encap"), "esn" in flags, number("replay-window"),
              number("replay-seq-hi") << 32 | number("replay-seq"),
              number("replay-oseq-hi") << 32 | number("replay-oseq"), fields.get("sel"), number("tfcpad"))


def _key(text):
    return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()


def _selector(words):
    values = {}
    while words and words[0] in ("src", "dst", "proto", "sport", "dport"):
        word = words.pop(0)
        value = words.pop(0)
        if word in ("src", "dst"):
            values[word] = ipaddress.ip_network(value, strict=False)
        else:
            values[word] = {"icmp": ICMP, "tcp": TCP, "udp": UDP}.get(value) or int(value, 0)
    return Selector(values.get("src"), values.get("dst"), values.get("proto"), values.get("sport"),
                    values.get("dport"))


def _algorithms(fields):
    if "aead" in fields:
        name, key, bits = fields["aead"]
        hash_name, auth_key = None, b""
    else:
        name, key = fields["enc"]
        auth_name, auth_key, bits = fields["auth-trunc"]
        hash_name = auth_name.removeprefix("hmac(").removesuffix(")")
    transform = {value: key for key, value in XFRM_NAMES.items()}[name.replace("ecb(cipher_null)", "cipher_null")]
    for suite in SUITES.values():
        if ((suite.transform, suite.hash, suite.icv_len * 8) == (transform, hash_name, bits)
                and suite.key_len + suite.salt_len == len(key) and not suite.implicit_iv):
            return suite, key, auth_key
    raise ValueError(f"no suite for {name!r} with {len(key)} bytes of key and {bits} bits of ICV")
