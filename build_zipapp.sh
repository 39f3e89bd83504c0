#!/bin/sh
# Build rtot.pyz, or the file that is named, from rtot.py: the same bytes each time from the same source.
#
#   ./build_zipapp.sh [FILE]            PYTHON=python3.9 ./build_zipapp.sh
set -eu

python=${PYTHON:-python3}
target=${1:-$(dirname "$0")/rtot.pyz}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# As __main__, so that its sys.exit gives the exit code: the -m module:function of zipapp drops what
# the function returns.  Zip has no time before 1980, and stores the local one.
cp "$(dirname "$0")/rtot.py" "$stage/__main__.py"
chmod 644 "$stage/__main__.py"
TZ=UTC touch -t 198001010000 "$stage/__main__.py"
TZ=UTC "$python" -m zipapp "$stage" --python '/usr/bin/env python3' --output "$target"
