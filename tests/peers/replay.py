"""The anti-replay window as a set of numbers: slow and plain."""


class ReplayWindow:
    """`size` 0: no protection."""

    def __init__(self, size, top, esn):
        self.size, self.top, self.esn = size, top, esn
        self.seen = set()

    def number(self, low):
        """The whole sequence number of a packet with these low 32 bits.

        RFC 4303 appendix A2.1, said differently: of all numbers with these low bits, the one in the
        2^32 numbers that begin with the left edge of the window, or with 0 while that is further right.
        """
        if not self.esn:
            return low
        edge = max(self.top - self.size + 1, 0)
        return edge + (low - edge) % (1 << 32)

    def accepts(self, number):
        if self.size == 0:
            return True
        return 0 < number < 1 << 64 and number > self.top - self.size and number not in self.seen

    def mark(self, number):
        """To be called once the packet is authentic."""
        self.top = max(self.top, number)
        self.seen.add(number)
