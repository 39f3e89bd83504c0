"""Some thousand malformed requests; fuzz.py sends as many as you like."""
import unittest

from fuzz import Fuzzer


class FuzzTest(unittest.TestCase):

    def test_malformed_requests_run_nothing_and_leak_nothing(self):
        fuzzer = Fuzzer(seed=2014)
        try:
            fuzzer.run(2500)
        finally:
            fuzzer.close()
