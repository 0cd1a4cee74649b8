"""Outcome of a part: how much passed, what failed and where to look, what was skipped and why."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAILURES = ROOT / "target" / "peers-failures"
SHOWN = 10


class Report:
    def __init__(self, part):
        self.part = part
        self.passed = 0
        self.failures = []
        self.skips = Counter()  # reason: count
        self.notes = []

    def check(self, holds, message):
        """Counts one check; `message` says what was expected and what came, and may be a function."""
        if holds:
            self.passed += 1
        else:
            self.fail(message() if callable(message) else message)
        return holds

    def fail(self, message):
        self.failures.append(message)

    def skip(self, reason, count=1):
        self.skips[reason] += count

    def note(self, text):
        self.notes.append(text)

    def keep(self, name, sa_text, capture):
        """Stores the input of a failed check; returns where."""
        FAILURES.mkdir(parents=True, exist_ok=True)
        stem = FAILURES / f"{self.part}-{name.replace('/', '_').replace(' ', '_')}"
        stem.with_name(stem.name + ".sa").write_text(sa_text)
        stem.with_name(stem.name + ".pcap").write_bytes(capture)
        return f"{stem}.{{sa,pcap}}"

    def print(self):
        for message in self.failures[:SHOWN]:
            print(f"  FAILED {self.part}: {message}")
        if len(self.failures) > SHOWN:
            print(f"  ... and {len(self.failures) - SHOWN} more failures")
        for reason, count in self.skips.items():
            print(f"  skipped {count}: {reason}")
        for text in self.notes:
            print(f"  {text}")
        print(f"{self.part}: {self.passed} passed, {len(self.failures)} failed, "
              f"{sum(self.skips.values())} skipped", flush=True)
