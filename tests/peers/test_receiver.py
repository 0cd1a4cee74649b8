"""The naive receiver: replay arithmetic against the RFC's own, and verdicts that are known by construction."""

import random
import unittest

import capture
import esp
import hostile
import part_negative
import wire
from capture import ETHERNET, ethernet
from receiver import Receiver
from replay import ReplayWindow


def rfc_4303_high_half(top, size, low):
    """RFC 4303 appendix A2.1, case by case."""
    top_low, top_high = top & 0xFFFFFFFF, top >> 32
    bottom = (top_low - size + 1) & 0xFFFFFFFF
    if top_low >= size - 1:
        return top_high if low >= bottom else top_high + 1
    return top_high - 1 if low >= bottom else top_high


class Replay(unittest.TestCase):
    def test_high_half_is_that_of_rfc_4303(self):
        rng = random.Random(1)
        for _ in range(100_000):
            size = rng.choice((32, 64, 1024, 65536))
            top = (rng.randrange(1, 9) << 32) + rng.choice((rng.randrange(1 << 32), rng.randrange(-70_000, 70_000)))
            low = (top + rng.choice((rng.randrange(-70_000, 70_000), rng.randrange(1 << 32)))) & 0xFFFFFFFF
            number = ReplayWindow(size, top, True).number(low)
            self.assertEqual(number, rfc_4303_high_half(top, size, low) << 32 | low)

    def test_edges(self):
        window = ReplayWindow(32, 100, False)
        self.assertTrue(window.accepts(69) and window.accepts(100) and window.accepts(101))
        self.assertFalse(window.accepts(68) or window.accepts(0))
        window.mark(101)
        self.assertFalse(window.accepts(69) or window.accepts(101))
        self.assertTrue(window.accepts(70))
        self.assertTrue(ReplayWindow(0, 100, False).accepts(0))


class Verdicts(unittest.TestCase):
    def verdicts(self, sa, *packets):
        receiver = Receiver([sa])
        return [receiver.frame(ETHERNET, ethernet(packet)) for packet in packets]

    def test_in_the_order_of_the_checks(self):
        sa = hostile.association()
        sender = hostile.Sender(sa)
        good = sender.seal()
        forged = good[:-1] + bytes([good[-1] ^ 1])
        elsewhere = good[:23] + bytes([good[23] ^ 1]) + good[24:]
        padding = sender.plaintext(hostile.packet(sa) + b"\2\1\2\4")
        self.assertEqual(self.verdicts(sa, forged, good, forged, elsewhere, padding, padding),
                         ["icv", "accepted", "replay", "no_sa", "padding", "replay"])
        self.assertEqual(self.verdicts(sa, sender.payload(b"x", 59), sender.payload(b"", 4), sender.payload(b"\x60", 4)),
                         ["dummy", "malformed", "malformed"])

    def test_flips_and_truncations_are_never_accepted(self):
        sa = hostile.association("aes256-sha512", "transport", "v6")
        good = hostile.Sender(sa).seal()
        for at in range(40, len(good)):
            self.assertIn(self.verdicts(sa, good[:at] + bytes([good[at] ^ 16]) + good[at + 1:])[0], ("icv", "no_sa"))
        for length in range(len(good)):
            frame = ethernet(good, ether_type=0x86DD)[:14 + length]
            self.assertEqual(Receiver([sa]).frame(ETHERNET, frame), "malformed")

    def test_fragments(self):
        sa = hostile.association()
        parts = wire.fragments(hostile.Sender(sa).seal(hostile.packet(sa, 900)), 256, 1)
        self.assertEqual(self.verdicts(sa, *reversed(parts)), [None] * (len(parts) - 1) + ["accepted"])
        self.assertEqual(self.verdicts(sa, *parts[1:]), [None] * (len(parts) - 1))
        whole = wire.parse(parts[1])
        other = wire.ipv4(whole.source, whole.destination, whole.protocol, bytes(256), ident=1, more=True, offset=256)
        self.assertEqual(self.verdicts(sa, parts[0], parts[1], other), [None, None, "malformed"])

    def test_every_kind_of_drop_is_met(self):
        kinds = set()
        for case in part_negative.cases(quick=True):
            receiver = Receiver(case.associations)
            kinds |= {receiver.frame(case.link_type, frame) for frame in case.frames}
        self.assertEqual(kinds, {"accepted", "icv", "replay", "malformed", "padding", "dummy", "selector", "no_sa",
                                 "not_esp", None})


class Files(unittest.TestCase):
    def test_pcap_reads_back(self):
        frames = [bytes(length) for length in (0, 1, 60, 9000)]
        for order in "<>":
            for nanoseconds in (False, True):
                data = capture.write_pcap(ETHERNET, frames, order=order, nanoseconds=nanoseconds)
                self.assertEqual(capture.read_pcap(data), (ETHERNET, frames))


if __name__ == "__main__":
    unittest.main()
