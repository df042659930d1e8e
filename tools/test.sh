#!/usr/bin/env bash
# Set up and pass the tests. With --fast, no static checks.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
source tools/setup.sh dev,dicom,demo,fast
if [ "${1:-}" = "--fast" ]; then
    exec python -m pytest -q -n 2 --dist loadfile
fi
exec python -m tools.check
