"""Every combination that the seal and open parts walk: suite x mode x carrier x sequence numbers."""

import hashlib
from dataclasses import dataclass

from sa import Sa
from suites import SUITES, Suite
from wire import address

OUTER = {4: (address("192.0.2.1"), address("198.51.100.2")), 6: (address("2001:db8::1"), address("2001:db8:ffff::2"))}
INNER = {4: (address("10.1.2.3"), address("172.16.4.5")), 6: (address("fd00::1:2"), address("fd77:abcd::9"))}
SPI = 0xC0FFEE01


@dataclass(frozen=True)
class Carrier:
    name: str
    outer: int  # IP version
    inner: tuple[int, ...]  # IP versions, of tunnels
    udp: bool


CARRIERS = (
    Carrier("v4", 4, (4,), False),
    Carrier("v6", 6, (6,), False),
    Carrier("v4-in-v6", 6, (4,), False),
    Carrier("v6-in-v4", 4, (6,), False),
    Carrier("v4+udp", 4, (4, 6), True),
    Carrier("v6+udp", 6, (6, 4), True),
)
# Name, extended numbers, and the number that the association continues from.
NUMBERS = (
    ("esn off", False, 0),
    ("esn", True, 7 << 32 | 0x100),
    ("esn across 2^32", True, (8 << 32) - 6),
)


@dataclass(frozen=True)
class Cell:
    name: str
    suite: Suite
    mode: str
    carrier: Carrier
    esn: bool
    start: int

    def association(self, **changes):
        """The cell's association; keys depend on the suite alone."""
        suite = self.suite
        stream = hashlib.shake_256(suite.name.encode()).digest(256)
        key = stream[:suite.key_len + suite.salt_len]
        fields = dict(suite=suite, key=key, auth_key=stream[128:128 + suite.auth_key_len], spi=SPI,
                      source=OUTER[self.carrier.outer][0], destination=OUTER[self.carrier.outer][1], mode=self.mode,
                      encap=(4500, 4500) if self.carrier.udp else None, esn=self.esn, window=64,
                      sequence=self.start, last_sent=self.start)
        return Sa(**fields | changes)

    def flows(self):
        """Address pairs of the packets inside."""
        if self.mode == "transport":
            return [OUTER[self.carrier.outer]]
        return [INNER[version] for version in self.carrier.inner]


def cells(quick):
    """All cells; `quick`: one in eleven, which still meets every suite, mode, carrier and kind of number."""
    index = 0
    for suite in SUITES.values():
        for mode in ("tunnel", "transport"):
            for carrier in CARRIERS:
                if mode == "transport" and carrier.inner[0] != carrier.outer:
                    continue
                for numbers, esn, start in NUMBERS:
                    index += 1
                    if quick and index % 11:
                        continue
                    yield Cell(f"{suite.name} {mode} {carrier.name} {numbers}", suite, mode, carrier, esn, start)
