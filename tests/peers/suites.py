"""The ESP transforms: their names, lengths and what each does to one packet, on `cryptography` alone."""

import hmac
import struct
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, ChaCha20Poly1305


@dataclass(frozen=True)
class Suite:
    name: str
    transform: str  # gcm, gmac, chacha, ccm, cbc, ctr, null
    hash: str | None  # of the HMAC, for what is not an AEAD
    key_len: int
    salt_len: int
    auth_key_len: int
    iv_len: int
    icv_len: int
    align: int
    implicit_iv: bool = False

    @property
    def is_aead(self):
        return self.hash is None

    def algorithm_words(self, key, auth_key):
        """The algorithm part of an `ip xfrm state` line; None where the kernel has no such transform."""
        if self.implicit_iv:
            return None
        name = XFRM_NAMES[self.transform]
        secret = f"0x{key.hex()}" if key else '""'
        if self.is_aead:
            return f"aead '{name}' {secret} {self.icv_len * 8}"
        return f"enc '{name}' {secret} auth-trunc 'hmac({self.hash})' 0x{auth_key.hex()} {self.icv_len * 8}"


XFRM_NAMES = {
    "gcm": "rfc4106(gcm(aes))",
    "gmac": "rfc4543(gcm(aes))",
    "chacha": "rfc7539esp(chacha20,poly1305)",
    "ccm": "rfc4309(ccm(aes))",
    "cbc": "cbc(aes)",
    "ctr": "rfc3686(ctr(aes))",
    "null": "cipher_null",
}
HASHES = {"sha1": (20, 12), "sha256": (32, 16), "sha384": (48, 24), "sha512": (64, 32)}  # key, ICV


def _suites():
    for bits in (128, 192, 256):
        for icv in (16, 12, 8):
            yield Suite(f"aes{bits}gcm{icv}", "gcm", None, bits // 8, 4, 0, 8, icv, 4)
            yield Suite(f"aes{bits}ccm{icv}", "ccm", None, bits // 8, 3, 0, 8, icv, 4)
        yield Suite(f"aes{bits}gmac", "gmac", None, bits // 8, 4, 0, 8, 16, 4)
        yield Suite(f"aes{bits}gcm16iiv", "gcm", None, bits // 8, 4, 0, 0, 16, 4, True)
        yield Suite(f"aes{bits}ccm8iiv", "ccm", None, bits // 8, 3, 0, 0, 8, 4, True)
    yield Suite("chacha20poly1305", "chacha", None, 32, 4, 0, 8, 16, 4)
    yield Suite("chacha20poly1305iiv", "chacha", None, 32, 4, 0, 0, 16, 4, True)
    for name, (auth_key, icv) in HASHES.items():
        for bits in (128, 192, 256):
            yield Suite(f"aes{bits}-{name}", "cbc", name, bits // 8, 0, auth_key, 16, icv, 16)
            yield Suite(f"aes{bits}ctr-{name}", "ctr", name, bits // 8, 4, auth_key, 8, icv, 4)
        yield Suite(f"null-{name}", "null", name, 0, 0, auth_key, 0, icv, 4)


SUITES = {suite.name: suite for suite in _suites()}


def seal(suite, key, auth_key, spi, sequence, esn, iv, plaintext):
    """IV, ciphertext and ICV of one packet; `plaintext` ends with its ESP trailer."""
    if suite.is_aead:
        aad, nonce = _aad(spi, sequence, esn), _nonce(suite, key, sequence, esn, iv)
        return iv + _aead_seal(suite, key[:suite.key_len], nonce, aad, iv, plaintext)
    ciphertext = _crypt(suite, key, iv, plaintext, encrypt=True)
    return iv + ciphertext + _hmac(suite, auth_key, spi, sequence, esn, iv + ciphertext)


def open(suite, key, auth_key, spi, sequence, esn, body):
    """The plaintext with its trailer; None if the ICV is wrong. `body`: IV, ciphertext, ICV."""
    iv, ciphertext, icv = body[:suite.iv_len], body[suite.iv_len:-suite.icv_len], body[-suite.icv_len:]
    if suite.is_aead:
        aad, nonce = _aad(spi, sequence, esn), _nonce(suite, key, sequence, esn, iv)
        return _aead_open(suite, key[:suite.key_len], nonce, aad, iv, ciphertext, icv)
    if not hmac.compare_digest(_hmac(suite, auth_key, spi, sequence, esn, iv + ciphertext), icv):
        return None
    return _crypt(suite, key, iv, ciphertext, encrypt=False)


def _aad(spi, sequence, esn):
    # RFC 4106 section 5: SPI and the 32- or 64-bit sequence number.
    return struct.pack("!IQ", spi, sequence) if esn else struct.pack("!II", spi, sequence)


def _nonce(suite, key, sequence, esn, iv):
    if suite.implicit_iv:
        # RFC 8750 section 4: the 64-bit sequence number, or four zero bytes and the 32-bit one.
        iv = struct.pack("!Q", sequence if esn else sequence & 0xFFFFFFFF)
    return key[suite.key_len:] + iv


@lru_cache(256)
def _ccm(key, icv_len):
    return AESCCM(key, tag_length=icv_len)


@lru_cache(64)
def _chacha(key):
    return ChaCha20Poly1305(key)


@lru_cache(64)
def _aes(key):
    return algorithms.AES(key)


def _aead_seal(suite, key, nonce, aad, iv, plaintext):
    if suite.transform == "chacha":
        return _chacha(key).encrypt(nonce, plaintext, aad)
    if suite.transform == "ccm":
        return _ccm(key, suite.icv_len).encrypt(nonce, plaintext, aad)
    context = Cipher(_aes(key), modes.GCM(nonce)).encryptor()
    if suite.transform == "gmac":
        # RFC 4543 section 3: IV and payload are authenticated, not encrypted.
        context.authenticate_additional_data(aad + iv + plaintext)
        context.finalize()
        return plaintext + context.tag
    context.authenticate_additional_data(aad)
    ciphertext = context.update(plaintext) + context.finalize()
    return ciphertext + context.tag[:suite.icv_len]


def _aead_open(suite, key, nonce, aad, iv, ciphertext, icv):
    try:
        if suite.transform == "chacha":
            return _chacha(key).decrypt(nonce, ciphertext + icv, aad)
        if suite.transform == "ccm":
            return _ccm(key, suite.icv_len).decrypt(nonce, ciphertext + icv, aad)
        context = Cipher(_aes(key), modes.GCM(nonce, icv, min_tag_length=suite.icv_len)).decryptor()
        if suite.transform == "gmac":
            context.authenticate_additional_data(aad + iv + ciphertext)
            context.finalize()
            return ciphertext
        context.authenticate_additional_data(aad)
        return context.update(ciphertext) + context.finalize()
    except InvalidTag:
        return None


def _crypt(suite, key, iv, data, *, encrypt):
    if suite.transform == "null":
        return data
    if suite.transform == "cbc":
        mode = modes.CBC(iv)
    else:
        # RFC 3686 section 4: nonce, IV, and a block counter that begins with one.
        mode = modes.CTR(key[suite.key_len:] + iv + b"\0\0\0\1")
    cipher = Cipher(_aes(key[:suite.key_len]), mode)
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    return context.update(data) + context.finalize()


def _hmac(suite, auth_key, spi, sequence, esn, body):
    # RFC 4303 section 2.2.1: the high half is authenticated behind the packet, not sent.
    message = struct.pack("!II", spi, sequence & 0xFFFFFFFF) + body
    if esn:
        message += struct.pack("!I", sequence >> 32)
    return hmac.digest(auth_key, message, suite.hash)[:suite.icv_len]
