#!/usr/bin/env bash
# Runs the tests with each version of torch that the README promises, each in a throwaway venv. Not part of CI: the
# builds for CUDA take some 3 GB each.
#
#     bash tests/torch_versions.sh                                  # 2.11.0 and 2.14.1, all tests
#     VERSIONS="2.12.0" bash tests/torch_versions.sh tests/algo     # another version, some tests
#     KEEP=/tmp/venvs bash tests/torch_versions.sh                  # keep the venvs there, and use them again
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
for version in ${VERSIONS:-2.11.0 2.14.1}; do
    venv=${KEEP:-$(mktemp -d)}/torch-$version
    echo "== torch $version, in $venv"
    if ! { [ -x "$venv/bin/python" ] || python3 -m venv "$venv"; } ||
        ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$version" ||
        ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[test]" "torch==$version" ||
        ! "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@"; then
        failed+=("$version")
    fi
    [ -n "${KEEP:-}" ] || rm -rf "$(dirname "$venv")"
done
[ ${#failed[@]} -eq 0 ] || { echo "== failed with torch ${failed[*]}"; exit 1; }
echo "== all versions passed"
