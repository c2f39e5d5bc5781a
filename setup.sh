#!/usr/bin/env bash
# Makes .venv, with what requirements.lock and requirements-dev.lock name and the project itself.
# Takes no time when nothing changed. The machine's own settings for pip and uv apply.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
UV_VERSION=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements-setup.lock)

inputs() { pwd && cat requirements{,-dev,-setup}.lock pyproject.toml setup.sh; }
if [ -x .venv/bin/espalier ] && inputs | cmp -s - .venv/.set-up; then exit 0; fi

die() { echo "Set-up: $*" >&2 && exit 1; }
has_310() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null
}
find_python() {
    { type -ap python3.10 python3 python || true
      ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10*/bin/python 2>/dev/null || true
      uv python find --no-project 3.10 2>/dev/null || true
    } | while read -r python; do
        if has_310 "$python"; then echo "$python" && break; fi
    done
}

python=$(find_python || true)  # its first lister may be cut short
[ -n "$python" ] || die "Python 3.10 with its venv module was not found (as python3.10 on PATH," \
    "in pyenv's versions, or by uv); TFX works with no other version. Install it, for example with" \
    "\`uv python install 3.10\`, \`pyenv install 3.10\`, or your system's packages python3.10 and" \
    "python3.10-venv, and try again."

# An environment of another place or another Python is of no use.
if [ -e .venv/.set-up ] && [ "$(head -n 1 .venv/.set-up)" != "$PWD" ]; then rm -rf .uv .venv; fi
rm -f .venv/.set-up
if [ "$(.uv/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$UV_VERSION" ]; then
    echo "Set-up: uv $UV_VERSION into .uv, with $python"
    rm -rf .uv
    "$python" -m venv .uv || die "a virtual environment could not be made in .uv (see above)."
    .uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r requirements-setup.lock \
        || die "pip could not install uv $UV_VERSION (see above); it needs a network, or an index."
fi
# pip's index serves for uv too, unless uv was told of one.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$(.uv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
fi

echo "Set-up: the packages of requirements.lock into .venv (about 3 GB the first time)"
has_310 .venv/bin/python || .uv/bin/uv venv --quiet --clear --no-project --python "$python" .venv
.uv/bin/uv pip sync --quiet --require-hashes --python .venv/bin/python \
    requirements.lock requirements-dev.lock \
    || die "the packages could not be installed (see above); run it again to go on from here."
.uv/bin/uv pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python -e . \
    || die "the project itself could not be installed (see above)."
# mypy does not follow an editable install; it finds the package by this link (MYPYPATH).
mkdir -p .venv/link && ln -sfn ../.. .venv/link/espalier
inputs > .venv/.set-up
