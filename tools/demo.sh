#!/usr/bin/env bash
# Set up and run the main job on the embedded default: results and a page in demo_output/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091
source tools/setup.sh demo,dicom
exec medvol demo --output demo_output "$@"
