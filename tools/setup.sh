# Sourced by demo.sh and test.sh: a virtual environment with torch pinned and installed first.
# Usage: source tools/setup.sh EXTRAS
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x "$root/.venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
    # shellcheck disable=SC1091
    source "$root/.venv/bin/activate"
fi
pip_install() { python -m pip install --quiet --disable-pip-version-check "$@"; }
pip_install "$(grep -E '^torch==' "$root/tools/constraints.txt")"
pip_install --constraint "$root/tools/constraints.txt" --editable "$root[$1]"
