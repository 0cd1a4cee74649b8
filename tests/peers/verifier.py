"""Runs the `vesper-verify` program."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import capture

TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Opened:
    exit: int
    json: dict | None
    inner: list[bytes] | None
    stderr: str

    def counts(self):
        """The keys that the command line promises; None if the program printed none."""
        return self.json and {key: self.json.get(key) for key in ("packets", "accepted", "dropped", "not_esp")}


@dataclass(frozen=True)
class Sealed:
    exit: int
    link_type: int | None
    frames: list[bytes] | None
    stdout: str
    stderr: str


class Verifier:
    def __init__(self, path=None):
        self.path = Path(path or os.environ["VESPER_VERIFY"])
        self.directory = tempfile.TemporaryDirectory(prefix="vesper-peers-")
        self.runs = 0

    def run(self, *arguments):
        self.runs += 1
        return subprocess.run([self.path, *arguments], capture_output=True, timeout=TIMEOUT_SECONDS, check=False,
                              stdin=subprocess.DEVNULL)

    def pcap(self, sa_text, data):
        """`vesper-verify pcap`: counts and inner packets of a capture file's bytes."""
        sa_file, in_file, out_file = self._files(sa_text, data)
        done = self.run("pcap", "--sa", sa_file, "--write", out_file, "--json", in_file)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = None
        inner = None
        if out_file.exists() and out_file.stat().st_size:
            link_type, inner = capture.read_pcap(out_file.read_bytes())
            assert link_type == capture.RAW, f"--write wrote link type {link_type}"
        return Opened(done.returncode, answer, inner, _text(done.stderr))

    def encap(self, sa_text, data):
        """`vesper-verify encap`: what the wire would carry."""
        sa_file, in_file, out_file = self._files(sa_text, data)
        done = self.run("encap", "--sa", sa_file, "--json", in_file, out_file)
        link_type = frames = None
        if out_file.exists() and out_file.stat().st_size:
            link_type, frames = capture.read_pcap(out_file.read_bytes())
        return Sealed(done.returncode, link_type, frames, _text(done.stdout), _text(done.stderr))

    def _files(self, sa_text, data):
        directory = Path(self.directory.name)
        sa_file, in_file, out_file = directory / "in.sa", directory / "in.pcap", directory / "out.pcap"
        sa_file.write_text(sa_text + "\n")
        in_file.write_bytes(data)
        out_file.unlink(missing_ok=True)
        return sa_file, in_file, out_file


def _text(data):
    return data.decode(errors="replace").strip()
