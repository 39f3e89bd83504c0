"""Runs the test files side by side, each in a process of its own.

    python3 tests                   all of them
    python3 tests http runner -j 1  some, one after the other

What a file that fails has printed is shown; a line for each file and a summary end the output.  It
exits with 0 if all tests have passed, with 1 otherwise, and with `--no-skips` also if one was skipped.
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import time

DIRECTORY = os.path.dirname(os.path.abspath(__file__))
# Those that take longest come first, so that none of them is left alone at the end.
SLOWEST = ["page", "recipes", "runner", "routes", "command_line", "load", "http", "other_systems", "output"]

Result = collections.namedtuple("Result", "name status seconds ran skipped failed output")


def names():
    """Return the names of the test files, without test_ and .py, the slowest first."""
    found = [file[5:-3] for file in os.listdir(DIRECTORY) if re.match(r"test_\w+\.py$", file)]
    return sorted(found, key=lambda name: (SLOWEST.index(name) if name in SLOWEST else len(SLOWEST), name))


class Run:
    """A test file that runs."""

    def __init__(self, name, verbose):
        self.name, self.began = name, time.monotonic()
        command = [sys.executable, "-m", "unittest", "test_" + name] + (["-v"] if verbose else [])
        self.process = subprocess.Popen(command, cwd=DIRECTORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, universal_newlines=True)

    def result(self):
        """Wait for its end; return its Result."""
        output = self.process.communicate()[0]
        ran = re.search(r"(?m)^Ran ([0-9]+) tests?", output)
        counts = dict(re.findall(r"(failures|errors|skipped|unexpected successes)=([0-9]+)", output.rpartition("\nRan ")[2]))
        failed = sum(int(counts.get(name, 0)) for name in ("failures", "errors", "unexpected successes"))
        if self.process.returncode and not failed:
            failed = 1              # it could not be imported, or was killed
        return Result(self.name, self.process.returncode, time.monotonic() - self.began, int(ran.group(1)) if ran else 0,
                      int(counts.get("skipped", 0)), failed, output)


def run_all(waiting, jobs, verbose):
    """Yield the Result of each file as it ends; at most `jobs` run at a time."""
    from concurrent.futures import ThreadPoolExecutor, as_completed
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(lambda name=name: Run(name, verbose).result()) for name in waiting]
        for future in as_completed(futures):
            yield future.result()


def main():
    parser = argparse.ArgumentParser("python3 tests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a file without test_ and .py: " + " ".join(names()))
    parser.add_argument("-j", "--jobs", type=int, default=4, help="files that run at a time (default: 4)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the output of all files")
    parser.add_argument("--no-skips", action="store_true", help="fail if a test was skipped")
    args = parser.parse_args()
    unknown = set(args.names) - set(names())
    if unknown:
        parser.error("there is no test_%s.py" % unknown.pop())
    began, results = time.monotonic(), []
    for result in run_all([name for name in names() if not args.names or name in args.names], args.jobs, args.verbose):
        results.append(result)
        if result.status or args.verbose or (args.no_skips and result.skipped):
            print("=" * 30, "test_%s.py" % result.name)
            print(result.output.rstrip("\n"))
        print("%-22s %-6s %4d tests in %5.1f s%s" % ("test_%s.py" % result.name, "FAILED" if result.status else "ok", result.ran,
                                                 result.seconds, ", %d skipped" % result.skipped if result.skipped else ""), flush=True)
    ran, skipped, failed = (sum(getattr(result, name) for result in results) for name in ("ran", "skipped", "failed"))
    print("%d tests run, %d skipped, %d failed, in %.0f s" % (ran, skipped, failed, time.monotonic() - began))
    return 1 if failed or any(result.status for result in results) or (args.no_skips and skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
