#!/bin/sh
# Build rtot.pyz, or the file that is named, from rtot.py: the same bytes each time from the same source and Python.
#
#   ./build_zipapp.sh [FILE]            PYTHON=python3.9 ./build_zipapp.sh
#
# Beside the source it holds the bytecode of the Python that built it.  A Python of another version compiles the source
# at each start, which takes it some 25 ms.
set -eu
directory=$(dirname "$0")
PYTHONHASHSEED=0 "${PYTHON:-python3}" -X no_debug_ranges - "$directory/rtot.py" "${1:-$directory/rtot.pyz}" <<'END'
import importlib.util
import marshal
import os
import sys
import zipfile

MAIN = b"""\
import sys
if sys.version_info < (3, 6):
    sys.exit("rtot needs Python 3.6 or newer; this is Python %d.%d" % sys.version_info[:2])
import gc
gc.disable()            # until rtot serves
archive = __loader__.archive
library = sys.modules["encodings"].__file__.rpartition("encodings")[0][:-1]
sys.path[:] = [path for path in sys.path
               if path.startswith(library) and not path.endswith("-packages") or path.endswith("lib-dynload")]
rtot = sys.modules["rtot"] = type(sys)("rtot")
rtot.__loader__ = __loader__
code, name = __loader__.get_data(archive + "/rtot.pyc"), archive + "/rtot.py"
if code[:4] == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER:
    import marshal          # import would take 2 ms more
    exec(marshal.loads(memoryview(code)[16:]), rtot.__dict__)
else:                       # another Python's: import would compile the source twice, and all at once takes 4 MB more
    line = 0
    for part in __loader__.get_data(name).split(b"\\n# -----"):
        exec(compile(b"\\n" * line + b"#" + part, name, "exec", 0, True, 2), rtot.__dict__)
        line += part.count(b"\\n") + 1
    part = None
    rtot.give_memory_back()
code = None
sys.exit(rtot.main())
"""
with open(sys.argv[1], "rb") as file:
    source = file.read()
code = marshal.dumps(compile(source, "rtot.pyz/rtot.py", "exec", dont_inherit=True, optimize=2))
bytecode = importlib.util.MAGIC_NUMBER + b"\1" + bytes(11) + code       # of unchecked hash, see PEP 552
with open(sys.argv[2], "wb") as file:
    file.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in ("__main__.py", MAIN), ("rtot.py", source), ("rtot.pyc", bytecode):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)     # of 1980
os.chmod(sys.argv[2], os.stat(sys.argv[2]).st_mode | 0o100)
END
