"""All NIST CAVP GCM vectors of the PyPI package cryptography_vectors."""

import json
from pathlib import Path

import cryptography_vectors

CASES = 47_250


def run(verifier, report, quick):
    directory = Path(cryptography_vectors.__file__).parent / "ciphers" / "AES" / "GCM"
    files = sorted(directory.glob("*.rsp"))
    stated = sum(file.read_text().count("\nCount = ") for file in files)
    report.check(stated == CASES, f"{directory} has {stated} cases, not {CASES}")
    done = verifier.run("--json", *files)
    if not report.check(done.returncode == 0, f"exit {done.returncode}: {done.stderr[-300:]}"):
        return
    answer = json.loads(done.stdout)
    report.note(f"vesper-verify: {json.dumps(answer)[:300]}")
