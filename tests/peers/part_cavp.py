"""All NIST CAVP GCM vectors of the PyPI package cryptography_vectors; one implementation has to pass every one."""

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
    for source in json.loads(done.stdout)["sources"]:
        results = {result["implementation"]: result for result in source["results"]}
        name = Path(source["name"]).name
        failed = sum(result["failed"] for result in results.values())
        complete = any(result["passed"] == source["tests"] for result in results.values())
        report.check(failed == 0 and complete, f"{name}: {failed} failed; no implementation passed all: {results}")
        for implementation, result in results.items():
            report.passed += result["passed"]
            for reason, count in result["skipped"].items():
                report.skip(f"{implementation}: {reason}", count)
