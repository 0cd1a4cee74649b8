"""The unit tests of the Python side."""

import io
import unittest
from pathlib import Path


def run(verifier, report, quick):
    suite = unittest.defaultTestLoader.discover(str(Path(__file__).parent), "test_*.py")
    log = io.StringIO()
    result = unittest.TextTestRunner(log).run(suite)
    for test, trace in result.failures + result.errors:
        report.fail(f"{test}: {trace}")
    for _, reason in result.skipped:
        report.skip(reason)
    report.passed += result.testsRun - len(result.failures) - len(result.errors) - len(result.skipped)
