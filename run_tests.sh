#!/bin/sh
# Run all tests, with coverage, in a virtual environment that is made on first use.
#
#   ./run_tests.sh                               all tests; fails below the coverage floor
#   ./run_tests.sh tests/test_spec.py -k cycle   a selection: paths relative to this folder, no coverage
#   PYTHON=/path/to/python ./run_tests.sh        with this interpreter; .venv is rebuilt when it was made by another
#
# Extra arguments go to pytest. Those that only change what is shown or when to stop (-v -q -x -s -l -r... --tb=
# --durations= --maxfail= --color= --cov...) keep the coverage; any other argument counts as a selection.
# A run of all tests is dealt out to several pytest processes: one for each processor, at most 4; --jobs N, or N in the
# variable RUN_TESTS_JOBS, is another number. A selection, and one with -x, -s, --maxfail= or --cov..., is one process.
# The exit code is pytest's (0 passed, 1 failed or too little coverage, 5 nothing collected), or 70 when the tests
# could not be started. A second run needs no network. The work is done by tests/run_all.py.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 70

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    usable "$python" || {
        echo "run_tests: PYTHON=$python is not a Python 3.8 or newer that can be started" >&2
        exit 70
    }
else
    python=
    for candidate in python3 python; do
        if usable "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || {
        echo "run_tests: found no Python 3.8 or newer as python3 or python; set PYTHON=/path/to/python" >&2
        exit 70
    }
fi

exec "$python" "$here/tests/run_all.py" "$@"
