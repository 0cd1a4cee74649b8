"""The check of outer headers notices each field that is wrong."""

import unittest

import encap_check
import esp
import hostile
import wire


class OuterHeaders(unittest.TestCase):
    def faults(self, sa, change, number=1):
        inner = hostile.packet(sa)
        return encap_check.faults(sa, number, inner, change(bytearray(esp.seal(sa, 1, inner))))

    def test_right_packets_have_no_fault(self):
        for mode in ("tunnel", "transport"):
            for carrier in ("v4", "v6", "v4+udp", "v6+udp"):
                self.assertEqual(self.faults(hostile.association(mode=mode, carrier=carrier), bytes), [])

    def test_each_field(self):
        sa, v6 = hostile.association(), hostile.association(carrier="v6")
        udp, udp6 = hostile.association(carrier="v4+udp"), hostile.association(carrier="v6+udp")

        def setting(*changes, repair=True):
            def change(data):
                for at, value in changes:
                    data[at] = value
                if repair and data[0] >> 4 == 4:
                    data[10:12] = bytes(2)
                    data[10:12] = wire.checksum(data[:20]).to_bytes(2, "big")
                return bytes(data)
            return change

        for expected, sa, change in (
            ("outer packet malformed", sa, setting((10, 1), (11, 1), repair=False)),
            ("outer header checksum", sa, setting((10, 0), (11, 0), repair=False)),
            ("outer traffic class", sa, setting((1, 4))), ("outer DF", sa, setting((6, 0x40))),
            ("outer hop limit", sa, setting((8, 63))), ("outer hop limit", v6, setting((7, 63))),
            ("outer source", sa, setting((15, 9))), ("SPI", sa, setting((20, 9))),
            ("sequence number", sa, setting((27, 9))), ("UDP ports", udp, setting((21, 9))),
            ("UDP checksum", udp, setting((26, 9))), ("UDP checksum", udp6, setting((46, 9))),
            ("ICV", sa, setting((60, 1))),
        ):
            with self.subTest(expected):
                self.assertTrue(any(fault.startswith(expected) for fault in self.faults(sa, change)),
                                self.faults(sa, change))

    def test_repeated_and_foreseeable_ivs(self):
        sa = hostile.association("aes256-sha512")
        packets = [esp.carry(sa, esp.seal_plaintext(sa, number, bytes(14) + b"\0\4", number.to_bytes(16, "big")))
                   for number in range(1, 30)]
        self.assertTrue(encap_check.iv_faults(sa, packets))
        self.assertTrue(encap_check.iv_faults(sa, [packets[0], packets[0]]))
        random_ivs = [esp.seal(sa, number, hostile.packet(sa)) for number in range(1, 30)]
        self.assertEqual(encap_check.iv_faults(sa, random_ivs), [])


if __name__ == "__main__":
    unittest.main()
