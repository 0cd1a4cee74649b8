"""The parts of tests/peers/run, one after the other."""

import argparse
import shutil
import sys
import time

import part_captures
import part_cavp
import part_encap
import part_large
import part_negative
import part_open
import part_self
from report import FAILURES, Report
from verifier import Verifier

PARTS = {
    "self": (part_self, "the Python peers against published packets and each other"),
    "captures": (part_captures, "packets of Linux and strongSwan, opened by the Python peer and by vesper-verify"),
    "encap": (part_encap, "sealed by vesper-verify, opened by the Python peer and scapy"),
    "open": (part_open, "sealed by the Python peer and scapy, opened by vesper-verify"),
    "negative": (part_negative, "hostile captures: every count against a naive receiver"),
    "large": (part_large, "a capture of 100 MB in bounded memory"),
    "cavp": (part_cavp, "all NIST CAVP GCM vectors"),
}


def main():
    parts = "\n".join(f"  {name:10}{what}" for name, (_, what) in PARTS.items())
    parser = argparse.ArgumentParser(description="Vesper against independent implementations.",
                                     epilog=f"parts:\n{parts}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sample of each part")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    shutil.rmtree(FAILURES, ignore_errors=True)
    verifier = Verifier()
    reports = []
    for name in arguments.parts or PARTS:
        report, start = Report(name), time.monotonic()
        PARTS[name][0].run(verifier, report, arguments.quick)
        report.note(f"{time.monotonic() - start:.1f} s")
        report.print()
        reports.append(report)
    passed, failed = sum(report.passed for report in reports), sum(len(report.failures) for report in reports)
    skipped = sum(sum(report.skips.values()) for report in reports)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    # A part that ran nothing has shown nothing.
    sys.exit(1 if failed or any(report.passed == 0 for report in reports) else 0)


if __name__ == "__main__":
    main()
