"""The same packets through scapy: a second independent implementation, slow, used on samples."""

import logging

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

import wire
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from wire import ICMPV6, TCP

CIPHERS = {"gcm": "AES-GCM", "gmac": "AES-NULL-GMAC", "chacha": "CHACHA20-POLY1305", "ccm": "AES-CCM",
           "cbc": "AES-CBC", "ctr": "AES-CTR", "null": "NULL"}
HMACS = {"sha1": "HMAC-SHA1-96", "sha256": "SHA2-256-128", "sha384": "SHA2-384-192", "sha512": "SHA2-512-256"}


def lacks(sa):
    """Why scapy can not handle the association; None if it can."""
    if sa.suite.implicit_iv:
        return "scapy has no implicit IVs"
    if sa.suite.transform == "gcm" and sa.suite.icv_len != 16:
        return "scapy seals AES-GCM with an ICV of 16 bytes alone"
    return None


def sample(sa, index, packets):
    """The index of a packet that scapy can carry, counted from `index`.

    With ESP in UDP in transport mode scapy loses the extension headers of IPv6.
    """
    order = [(index + step) % len(packets) for step in range(len(packets))]
    if sa.mode == "tunnel" or not sa.encap:
        return order[0]
    return next(at for at in order if packets[at][0] >> 4 == 4 or packets[at][6] in (TCP, wire.UDP, ICMPV6))


def _association(sa, number):
    def packet_class(address):
        return IP if address.version == 4 else IPv6

    tunnel = None
    if sa.mode == "tunnel":
        tunnel = packet_class(sa.source)(src=str(sa.source), dst=str(sa.destination))
    udp = UDP(sport=sa.encap[0], dport=sa.encap[1]) if sa.encap else None
    suite = sa.suite
    return SecurityAssociation(
        ESP, spi=sa.spi, crypt_algo=CIPHERS[suite.transform], crypt_key=sa.key or None,
        crypt_icv_size=suite.icv_len if suite.transform == "ccm" else None,
        auth_algo=HMACS[suite.hash] if suite.hash else None, auth_key=sa.auth_key or None,
        tunnel_header=tunnel, nat_t_header=udp, esn_en=sa.esn, esn=number >> 32)


def seal(sa, number, inner):
    packet = (IP if inner[0] >> 4 == 4 else IPv6)(inner)
    return bytes(_association(sa, number).encrypt(packet, seq_num=number & 0xFFFFFFFF))


def open(sa, number, data):
    packet = (IP if data[0] >> 4 == 4 else IPv6)(data)
    return bytes(_association(sa, number).decrypt(packet))
