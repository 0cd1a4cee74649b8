"""A capture of 100 MB sealed and opened again: every packet comes back, and memory stays bounded."""

import hashlib
import random
import re
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import capture
import hostile

BYTES = 100_000_000
MEMORY_KIB = 32 * 1024
LENGTH = 1300


def run(verifier, report, quick):
    sa = hostile.association("aes256gcm16", esn=True, start=(1 << 32) - 1000)
    count = BYTES // (LENGTH + 44) // (10 if quick else 1)
    with tempfile.TemporaryDirectory(prefix="vesper-large-") as directory:
        plain, sealed, opened = (Path(directory) / name for name in ("plain.pcap", "sealed.pcap", "opened.pcap"))
        sa_file = Path(directory) / "in.sa"
        sa_file.write_text(sa.line() + "\n")
        _write(plain, hostile.packet(sa, LENGTH), count)
        for name, arguments in (("encap", ("--sa", sa_file, plain, sealed)),
                                ("pcap", ("--sa", sa_file, "--write", opened, sealed))):
            exit_code, memory = _measured(verifier, name, *arguments)
            report.check(exit_code == 0, f"{name}: exit {exit_code}")
            report.check(0 < memory < MEMORY_KIB, f"{name}: {memory} KiB of memory, not below {MEMORY_KIB}")
            report.note(f"{name}: {count} packets, {memory // 1024} MiB of memory at most")
        report.check(_packets(opened) == _packets(plain), "other packets came back than were sealed")


def _write(path, packet, count):
    rng = random.Random("large")
    with path.open("wb") as file:
        file.write(capture.write_pcap(capture.RAW, []))
        for index in range(count):
            data = packet[:-16] + rng.randbytes(16)
            file.write(struct.pack("<IIII", index // 1000, index % 1000, len(data), len(data)) + data)


def _measured(verifier, *arguments):
    """Exit code, and the greatest resident memory in KiB, as far as a look every 5 ms tells."""
    child = subprocess.Popen([verifier.path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    peak = 0
    while child.poll() is None:
        # Of the resource usage that wait() gives, the part before exec is this interpreter's own.
        status = Path(f"/proc/{child.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            peak = int(found[1])
        time.sleep(0.005)
    return child.returncode, peak


def _packets(path):
    """How many packets a capture has, and a hash over all of them in order."""
    count, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        file.seek(24)
        while header := file.read(16):
            (length,) = struct.unpack_from("<I", header, 8)
            digest.update(file.read(length))
            count += 1
    return count, digest.hexdigest()
