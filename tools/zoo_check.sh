#!/usr/bin/env bash
# The model zoo's own gate over our bundles, offline.
#   tools/zoo_check.sh [PATH_TO_MODEL_ZOO_CHECKOUT] [BUNDLE ...]
# With a checkout its ci/verify_bundle.py judges every bundle that ships weights; without one the
# same MONAI commands are run from here, over all bundles.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m tools.zoo_check "$@"
