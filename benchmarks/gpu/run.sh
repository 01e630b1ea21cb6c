#!/usr/bin/env bash
# Tests and benchmark of the GPU in one call, within ten minutes:
#
#     PYTHON=.venv/bin/python bash benchmarks/gpu/run.sh [FILE]
#
# FILE is sourced where it is given: it may bring packages to a machine without make. Results are left in $OUT (default: ./gpu-results): tests.txt, benchmark.md,
# errors.txt. Further arguments go to the benchmark (--rehearse).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  # shellcheck disable=SC1090
  . "$1" || exit
  shift
fi
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# the repository's settings name plugins that the machine may lack
timeout 190 "$python" -m pytest -c /dev/null --rootdir . -p no:cacheprovider --noconftest -rs -q \
  tests/gpu tests/modules/kernels 2>&1 | tee "$out/tests.txt"
tests=${PIPESTATUS[0]}
timeout 360 "$python" -W ignore -m benchmarks.gpu "$@" 2> "$out/errors.txt" | tee "$out/benchmark.md"
benchmark=${PIPESTATUS[0]}
tail -n 20 "$out/errors.txt"
echo "tests: exit $tests; benchmark: exit $benchmark; results in $out"
exit $((tests > benchmark ? tests : benchmark))
