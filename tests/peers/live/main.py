"""The live peers: see README.md."""
import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from net import sweep

PARTS = ('guide', 'linux', 'dpdk', 'qemu', 'changes', 'interfaces', 'strongswan', 'scapy', 'rates')


class Report:
    """Counts what was checked, and tells what failed."""

    def __init__(self, part):
        self.part, self.good, self.bad, self.skipped = part, 0, 0, 0

    def check(self, holds, what):
        if holds:
            self.good += 1
        else:
            self.bad += 1
            print(f'{self.part}: FAILED: {what}', flush=True)

    def skip(self, what):
        self.skipped += 1
        print(f'{self.part}: skipped: {what}', flush=True)

    def note(self, what):
        print(f'{self.part}: {what}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='a sample of each part')
    parser.add_argument('parts', nargs='*', metavar='PART', help=', '.join(PARTS))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print('tests/peers/live: needs root for network namespaces and TAP: everything is skipped')
        return 1
    # An end from outside takes the same way out as any other, past everything that cleans up.
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda *_: sys.exit(1))
    sweep()
    failed = False
    for part in arguments.parts or PARTS:
        report = Report(part)
        start = time.time()
        try:
            module = importlib.import_module(f'part_{part}')
            module.run(report, os.environ['VESPER_GUEST'], arguments.quick)
        except Exception:
            report.check(False, traceback.format_exc())
        failed |= report.bad > 0 or report.good == 0
        print(f'{part}: {report.good} good, {report.bad} failed, {report.skipped} skipped, '
              f'{time.time() - start:.0f} s', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
