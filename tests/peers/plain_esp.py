"""ESP (RFC 4303) as plainly as it can be written, on the Python package `cryptography`.

It knows nothing of vesper: it was written from the RFCs, to open what `vesper-verify encap`
has sealed. Every check is an assertion.
"""

import hashlib
import hmac
import socket
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305


class Suite:
    """One way to protect a packet. `name` is for people, the rest for `ip xfrm` and ESP."""

    def __init__(self, name, kind, key, salt, iv, icv, align, mac=None, mac_key=0):
        self.name, self.kind, self.align = name, kind, align
        self.key, self.salt, self.iv, self.icv = key, salt, iv, icv
        self.mac, self.mac_key = mac, mac_key

    def xfrm(self, key, mac_key):
        """The algorithm words of an `ip xfrm state add` line."""
        hexkey = "0x" + key.hex() if key else '""'
        names = {
            "gcm": "rfc4106(gcm(aes))",
            "gmac": "rfc4543(gcm(aes))",
            "ccm": "rfc4309(ccm(aes))",
            "chapoly": "rfc7539esp(chacha20,poly1305)",
            "cbc": "cbc(aes)",
            "ctr": "rfc3686(ctr(aes))",
            "null": "ecb(cipher_null)",
        }
        name = names[self.kind]
        if self.mac is None:
            return f"aead '{name}' {hexkey} {self.icv * 8}"
        return (
            f"enc '{name}' {hexkey} auth-trunc 'hmac({self.mac})' 0x{mac_key.hex()} {self.icv * 8}"
        )


def suites():
    for bits in (128, 192, 256):
        for icv in (8, 12, 16):
            yield Suite(f"gcm{bits}-{icv}", "gcm", bits // 8, 4, 8, icv, 4)
            yield Suite(f"ccm{bits}-{icv}", "ccm", bits // 8, 3, 8, icv, 4)
        yield Suite(f"gmac{bits}", "gmac", bits // 8, 4, 8, 16, 4)
    yield Suite("chapoly", "chapoly", 32, 4, 8, 16, 4)
    for mac, icv in (("sha1", 12), ("sha256", 16), ("sha384", 24), ("sha512", 32)):
        size = hashlib.new(mac).digest_size
        for bits in (128, 192, 256):
            yield Suite(f"cbc{bits}-{mac}", "cbc", bits // 8, 0, 16, icv, 16, mac, size)
            yield Suite(f"ctr{bits}-{mac}", "ctr", bits // 8, 4, 8, icv, 4, mac, size)
        yield Suite(f"null-{mac}", "null", 0, 0, 0, icv, 4, mac, size)


def decrypt(suite, key, mac_key, esp, sequence, esn):
    """Text of the ESP packet `esp`, padding and trailer included."""
    head, body = esp[:8], esp[8 : len(esp) - suite.icv]
    icv = esp[len(esp) - suite.icv :]
    assert struct.unpack("!I", head[4:])[0] == sequence & 0xFFFFFFFF
    iv, text = body[: suite.iv], body[suite.iv :]
    cipher_key, salt = key[: suite.key], key[suite.key :]
    aad = head[:4] + struct.pack("!Q", sequence) if esn else head
    if suite.mac is not None:
        signed = head + body + (struct.pack("!I", sequence >> 32) if esn else b"")
        digest = hmac.new(mac_key, signed, suite.mac).digest()
        assert digest[: suite.icv] == icv, "ICV"
    if suite.kind == "gcm":
        if suite.icv == 16:
            return AESGCM(cipher_key).decrypt(salt + iv, text + icv, aad)
        # The package takes short tags only through its streaming interface.
        mode = modes.GCM(salt + iv, icv, min_tag_length=suite.icv)
        stream = Cipher(algorithms.AES(cipher_key), mode).decryptor()
        stream.authenticate_additional_data(aad)
        return stream.update(text) + stream.finalize()
    if suite.kind == "gmac":
        AESGCM(cipher_key).decrypt(salt + iv, icv, aad + iv + text)
        return text
    if suite.kind == "ccm":
        return AESCCM(cipher_key, suite.icv).decrypt(salt + iv, text + icv, aad)
    if suite.kind == "chapoly":
        return ChaCha20Poly1305(cipher_key).decrypt(salt + iv, text + icv, aad)
    if suite.kind == "cbc":
        stream = Cipher(algorithms.AES(cipher_key), modes.CBC(iv)).decryptor()
        return stream.update(text) + stream.finalize()
    if suite.kind == "ctr":
        block = salt + iv + struct.pack("!I", 1)
        stream = Cipher(algorithms.AES(cipher_key), modes.CTR(block)).decryptor()
        return stream.update(text) + stream.finalize()
    return text


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def header(packet):
    """Length of the IP header with everything that stays in front of ESP, the place of the
    byte that names the protocol, the protocol, and the addresses as text."""
    if packet[0] >> 4 == 4:
        length = (packet[0] & 15) * 4
        assert checksum(packet[:length]) == 0, "IPv4 header checksum"
        assert struct.unpack("!H", packet[2:4])[0] == len(packet), "IPv4 total length"
        addresses = [socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16)]
        return length, 9, packet[9], addresses
    assert packet[0] >> 4 == 6
    assert struct.unpack("!H", packet[4:6])[0] + 40 == len(packet), "IPv6 payload length"
    addresses = [socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24)]
    at, named, protocol = 40, 6, packet[6]
    while protocol in (0, 43, 60):
        named, protocol, at = at, packet[at], at + (packet[at + 1] + 1) * 8
    return at, named, protocol, addresses


def open_packet(suite, key, mac_key, packet, spi, sequence, esn, udp, tunnel):
    """The inner packet, and the outer header for further checks."""
    length, named, protocol, addresses = header(packet)
    at = length
    if udp:
        assert protocol == 17
        sport, dport, size, total = struct.unpack("!4H", packet[at : at + 8])
        assert (sport, dport) == udp and size == len(packet) - at, "UDP header"
        if packet[0] >> 4 == 6:
            pseudo = packet[8:40] + struct.pack("!II", size, 17)
            assert total != 0 and checksum(pseudo + packet[at:]) == 0, "UDP checksum"
        else:
            assert total == 0, "UDP checksum"
        at += 8
    else:
        assert protocol == 50
    esp = packet[at:]
    assert struct.unpack("!I", esp[:4])[0] == spi
    text = decrypt(suite, key, mac_key, esp, sequence, esn)
    assert len(text) % suite.align == 0, "alignment"
    padding, next_header = text[-2], text[-1]
    payload = text[: len(text) - 2 - padding]
    assert text[len(payload) : -2] == bytes(range(1, padding + 1)), "padding"
    assert padding < suite.align, "more padding than needed"
    if tunnel:
        assert next_header == {4: 4, 6: 41}[payload[0] >> 4], "next header"
        inner = inner_packet(payload)
        assert not any(payload[len(inner) :]), "TFC padding"
        return inner, addresses
    inner = bytearray(packet[:length]) + payload
    inner[named] = next_header
    if inner[0] >> 4 == 4:
        struct.pack_into("!H", inner, 2, len(inner))
        struct.pack_into("!H", inner, 10, 0)
        struct.pack_into("!H", inner, 10, checksum(bytes(inner[:length])))
    else:
        struct.pack_into("!H", inner, 4, len(inner) - 40)
    return bytes(inner), addresses


def inner_packet(payload):
    """The packet at the beginning of `payload`, by its own length field."""
    if payload[0] >> 4 == 4:
        return payload[: struct.unpack("!H", payload[2:4])[0]]
    return payload[: struct.unpack("!H", payload[4:6])[0] + 40]
