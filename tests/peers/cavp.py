"""All AES-GCM cases of NIST's validation program, as packed in cryptography_vectors."""

import json
import pathlib
import subprocess
import sys

import cryptography_vectors

CASES = 47_250


def main(verify):
    directory = pathlib.Path(cryptography_vectors.__file__).parent / "ciphers/AES/GCM"
    run = subprocess.run(
        [verify, "--json", str(directory)], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        sys.exit(f"cavp: exit status {run.returncode}: {run.stderr}{run.stdout[:2000]}")
    report = json.loads(run.stdout)
    tests = sum(source["tests"] for source in report["sources"])
    passed = {}
    for source in report["sources"]:
        for result in source["results"]:
            name = result["implementation"]
            passed[name] = passed.get(name, 0) + result["passed"]
    assert tests == CASES, f"cavp: {tests} cases instead of {CASES}"
    assert passed["rustcrypto"] == CASES, f"cavp: rustcrypto passed {passed['rustcrypto']}"
    print("cavp:", ", ".join(f"{name} {count} of {tests}" for name, count in passed.items()))


main(sys.argv[1])
