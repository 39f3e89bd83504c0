#!/bin/sh
# Build rtot.pyz, or the file that is named, from rtot.py: the same bytes each time from the same source and Python.
#
#   ./build_zipapp.sh [FILE]            PYTHON=python3.9 ./build_zipapp.sh
#
# Beside the source it holds the bytecode of the Python that built it, which need not compile it at each start (25 ms);
# any other version does.
set -eu

python=${PYTHON:-python3}
target=${1:-$(dirname "$0")/rtot.pyz}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# As __main__, so that its sys.exit gives the exit code: the -m module:function of zipapp drops what
# the function returns.
cp "$(dirname "$0")/rtot.py" "$stage/__main__.py"
PYTHONHASHSEED=0 "$python" -X no_debug_ranges - "$stage" <<'END'
import os
import py_compile
import sys
import zipfile

YEAR_1980 = 315532800       # s; zip knows no time before it, and it is what ZipInfo has by default
os.chdir(sys.argv[1])
os.utime("__main__.py", (YEAR_1980, YEAR_1980))
unchecked = {}
if sys.version_info >= (3, 7):      # before, it is compared with the time of the source, if the host lives in UTC
    unchecked["invalidation_mode"] = py_compile.PycInvalidationMode.UNCHECKED_HASH
py_compile.compile("__main__.py", "__main__.pyc", "rtot.pyz/__main__.py", doraise=True, optimize=2, **unchecked)
with zipfile.ZipFile("rtot.zip", "w") as archive:       # stored, not deflated: that is 0.5 ms of the start
    for name in ("__main__.py", "__main__.pyc"):
        with open(name, "rb") as file:
            archive.writestr(zipfile.ZipInfo(name), file.read())
END
"$python" -m zipapp "$stage/rtot.zip" --python '/usr/bin/env python3' --output "$target"
