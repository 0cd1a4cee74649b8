"""The Python peer against a published packet, against itself over the matrix, and against scapy."""

import unittest

import capture
import esp
import matrix
import sa as associations
import scapy_peer
import traffic
from receiver import Receiver
from suites import SUITES

# RFC 7634 appendix A.
RFC_7634_LINE = ("ip xfrm state add src 198.51.100.5 dst 192.0.2.5 proto esp spi 0x01020304 mode tunnel aead "
                 f"'rfc7539esp(chacha20,poly1305)' 0x{bytes(range(0x80, 0xA4)).hex()} 128")
RFC_7634_INNER = bytes.fromhex(
    "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f101112131415161718191a1b"
    "1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637")
RFC_7634_SEALED = bytes.fromhex(
    "0102030400000005" "1011121314151617"
    "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9"
    "befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0" "76aaa8266b7fb0f7b11b369907e1ad43")


class PublishedPacket(unittest.TestCase):
    def test_rfc_7634(self):
        sa = associations.parse_line(RFC_7634_LINE)
        plaintext = RFC_7634_INNER + esp.trailer(sa.suite, len(RFC_7634_INNER), 4)
        self.assertEqual(esp.seal_plaintext(sa, 5, plaintext, bytes(range(0x10, 0x18))), RFC_7634_SEALED)
        self.assertEqual(esp.strip_trailer(esp.open_esp(sa, 5, RFC_7634_SEALED)), (RFC_7634_INNER, 4))


class Matrix(unittest.TestCase):
    def test_what_is_sealed_opens(self):
        for cell in matrix.cells(quick=True):
            with self.subTest(cell.name):
                sa, inner = cell.association(), traffic.flows(cell.name, cell.flows(), traffic.LENGTHS[::4])
                receiver = Receiver([sa])
                for index, packet in enumerate(inner):
                    receiver.frame(capture.RAW, esp.seal(sa, cell.start + 1 + index, packet))
                self.assertEqual(receiver.inner, inner)

    def test_scapy_agrees(self):
        seen = set()
        for index, cell in enumerate(matrix.cells(quick=True)):
            sa = cell.association()
            if scapy_peer.lacks(sa):
                continue
            with self.subTest(cell.name):
                inner = traffic.flows(cell.name, cell.flows(), traffic.LENGTHS[::4])
                packet, number = inner[scapy_peer.sample(sa, index, inner)], cell.start + 1
                self.assertEqual(scapy_peer.open(sa, number, esp.seal(sa, number, packet)), packet)
                receiver = Receiver([sa])
                receiver.frame(capture.RAW, scapy_peer.seal(sa, number, packet))
                self.assertEqual(receiver.inner, [packet])
            seen.add(sa.suite.transform)
        self.assertEqual(seen, set(scapy_peer.CIPHERS))

    def test_lines_read_back(self):
        for cell in matrix.cells(quick=False):
            if not cell.suite.implicit_iv:
                sa = cell.association(selector=associations.Selector(protocol=17, destination_port=53), tfc_pad=300)
                self.assertEqual(associations.parse_line(sa.line()), sa)

    def test_every_suite_is_met(self):
        self.assertEqual({cell.suite.name for cell in matrix.cells(quick=True)}, set(SUITES))


if __name__ == "__main__":
    unittest.main()
