#!/bin/sh
# Build rtot.pyz, or the file that is named, from rtot.py: the same bytes each time from the same source and Python.
#
#   ./build_zipapp.sh [FILE]            PYTHON=python3.9 ./build_zipapp.sh
#
# Beside the source it holds the bytecode of the Python that built it.  A Python of another version compiles the source
# at each start, which takes it some 25 ms.
set -eu

python=${PYTHON:-python3}
target=${1:-$(dirname "$0")/rtot.pyz}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

cp "$(dirname "$0")/rtot.py" "$stage/rtot.py"
cat >"$stage/__main__.py" <<'END'
import sys
if sys.version_info < (3, 6):
    sys.exit("rtot needs Python 3.6 or newer; this is Python %d.%d" % sys.version_info[:2])
import gc
gc.disable()            # until rtot serves
archive = __loader__.archive
library = sys.modules["encodings"].__file__.rpartition("encodings")[0][:-1]
sys.path[:] = [archive] + [path for path in sys.path if path.startswith(library) and not path.endswith("-packages")
                           or path.endswith("lib-dynload")]
rtot = sys.modules["rtot"] = type(sys)("rtot")
rtot.__loader__ = __loader__
code, name = __loader__.get_data(archive + "/rtot.pyc"), archive + "/rtot.py"
if code[:4] == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER:
    import marshal          # import would take 2 ms more
    exec(marshal.loads(memoryview(code)[16 if sys.version_info >= (3, 7) else 12:]), rtot.__dict__)
else:                       # another Python's: import would compile the source twice, and all at once takes 4 MB more
    line = 0
    for part in __loader__.get_data(name).split(b"\n# -----"):
        exec(compile(b"\n" * line + b"#" + part, name, "exec", 0, True, 2), rtot.__dict__)
        line += part.count(b"\n") + 1
    part = None
    rtot.give_memory_back()
code = None
sys.exit(rtot.main())
END
PYTHONHASHSEED=0 "$python" -X no_debug_ranges - "$stage" <<'END'
import os
import py_compile
import sys
import zipfile

YEAR_1980 = 315532800       # s; zip knows no time before it, and it is what ZipInfo has by default
os.chdir(sys.argv[1])
os.utime("rtot.py", (YEAR_1980, YEAR_1980))
unchecked = {}
if sys.version_info >= (3, 7):      # before, it is compared with the time of the source, if the host lives in UTC
    unchecked["invalidation_mode"] = py_compile.PycInvalidationMode.UNCHECKED_HASH
py_compile.compile("rtot.py", "rtot.pyc", "rtot.pyz/rtot.py", doraise=True, optimize=2, **unchecked)
with zipfile.ZipFile("rtot.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name in ("__main__.py", "rtot.py", "rtot.pyc"):
        with open(name, "rb") as file:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, file.read())
END
"$python" -m zipapp "$stage/rtot.zip" --python '/usr/bin/env python3' --output "$target"
