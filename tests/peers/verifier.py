"""Runs the `vesper-verify` program."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import capture

TIMEOUT_SECONDS = 300
FORCE = "VESPER_KERNEL"


@dataclass(frozen=True)
class Opened:
    exit: int
    json: dict | None
    inner: list[bytes] | None
    stderr: str

    def counts(self):
        """The keys that the command line promises; None if the program printed none.

        It opens with every implementation that it has; where these disagree there is one key more.
        """
        if self.json is None:
            return None
        counts = {key: self.json.get(key) for key in ("packets", "accepted", "dropped", "not_esp")}
        return counts | ({"disagreements": disagreements} if (disagreements := self.json.get("disagreements")) else {})


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

    def run(self, *arguments, implementation=None):
        """Runs the program; `implementation` forces one upon it."""
        environment = os.environ | ({FORCE: implementation} if implementation else {})
        return subprocess.run([self.path, *arguments], capture_output=True, timeout=TIMEOUT_SECONDS, check=False,
                              stdin=subprocess.DEVNULL, env=environment)

    @cached_property
    def implementations(self):
        """Suite: names of the implementations of it that this CPU can run, the fastest first."""
        suites = {}
        for implementation in json.loads(self.run("--list", "--json").stdout)["implementations"]:
            for suite in implementation["suites"] if implementation["available"] else ():
                suites.setdefault(suite, []).append(implementation["name"])
        return suites

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

    def encap(self, sa_text, data, implementation=None):
        """`vesper-verify encap`: what the wire would carry."""
        sa_file, in_file, out_file = self._files(sa_text, data)
        done = self.run("encap", "--sa", sa_file, "--json", in_file, out_file, implementation=implementation)
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
