# Run all tests, with coverage, in a virtual environment that is made on first use.
#
#   .\run_tests.ps1                               all tests; fails below the coverage floor
#   .\run_tests.ps1 tests/test_spec.py -k cycle   a selection: paths relative to this folder, no coverage
#   $env:PYTHON = 'C:\Python38\python.exe'        with this interpreter; .venv is rebuilt when it was made by another
#
# Where scripts are not allowed:  powershell -ExecutionPolicy Bypass -File run_tests.ps1
#
# Extra arguments go to pytest. Those that only change what is shown or when to stop (-v -q -x -s -l -r... --tb=
# --durations= --maxfail= --color= --cov...) keep the coverage; any other argument counts as a selection.
# A run of all tests is dealt out to several pytest processes: one for each processor, at most 4; --jobs N, or N in the
# variable RUN_TESTS_JOBS, is another number. A selection, and one with -x, -s, --maxfail= or --cov..., is one process.
# The exit code is pytest's (0 passed, 1 failed or too little coverage, 5 nothing collected), or 70 when the tests
# could not be started. A second run needs no network. The work is done by tests/run_all.py.
#
# For Windows PowerShell 5.1 and PowerShell 7; ASCII only, because 5.1 reads a script without BOM in the ANSI code page.

# Not 'Stop': with it, 5.1 turns the first line that a program writes to a redirected stderr into the script's end.
$ErrorActionPreference = 'Continue'
# PowerShell 7.4 can turn a failing exit code into an error; here the code itself is the result.
$PSNativeCommandUseErrorActionPreference = $false

# No double quotes, '<' or '>' in it: 5.1 does not escape the first, and python may be a .bat shim that acts on the others.
$Probe = 'import sys; v = sys.version_info[:2]; sys.exit(max(v, (3, 8)) != v)'

function Test-Python([string] $Exe, [string[]] $Prefix) {
    $global:LASTEXITCODE = 1
    try {
        & $Exe @Prefix -c $Probe 2>$null | Out-Null
    } catch {
        return $false
    }
    return ($LASTEXITCODE -eq 0)
}

$Python = $null
$Prefix = @()
if ($env:PYTHON) {
    if (Test-Python $env:PYTHON @()) {
        $Python = $env:PYTHON
    } else {
        [Console]::Error.WriteLine("run_tests: PYTHON=$($env:PYTHON) is not a Python 3.8 or newer that can be started")
        exit 70
    }
} elseif (Test-Python 'py' @('-3')) {
    # The launcher of python.org comes first: on Windows a bare 'python' may be the store's placeholder.
    $Python = 'py'
    $Prefix = @('-3')
} elseif (Test-Python 'python3' @()) {
    $Python = 'python3'
} elseif (Test-Python 'python' @()) {
    $Python = 'python'
} else {
    [Console]::Error.WriteLine('run_tests: found no Python 3.8 or newer as py -3, python3 or python; set $env:PYTHON to its path')
    exit 70
}

$RunAll = Join-Path (Join-Path $PSScriptRoot 'tests') 'run_all.py'
& $Python @Prefix $RunAll @args
exit $LASTEXITCODE
