# Everything one does with Vestibule. `./dev RECIPE` runs the same where uv and just are not installed.

set positional-arguments := true
set shell := ["sh", "-eu", "-c"]

# The coverage that `just test` asks for, in per cent of lines and of branches: raise it, never lower it.
actors_floor := "100"
service_floor := "90"
# The share of small changes to actors/ that a unit test must notice, in per cent: raise it, never lower it.
mutants_floor := "90.4"

python := ".venv/bin/python"
pins := "uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header"

# List the recipes
default:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# Run the service on this machine: servers where no URL is given, migrations, API, mail worker
[no-exit-message]
up *arguments: _venv
    @exec .venv/bin/vestibule up "$@"

# Run all tests but the slow ones, and hold their coverage to the floors
test *arguments: _venv
    @{{ python }} -m coverage erase
    {{ python }} -m pytest -m 'not slow' --numprocesses logical --maxprocesses 4 --durations 10 --cov --cov-report= "$@"
    @{{ python }} .ci/coverage_floor.py actors={{ actors_floor }} service={{ service_floor }}

# Run the slow tests: chaos, long fuzz, the browser
[no-exit-message]
test-slow *arguments: _venv
    @exec {{ python }} -m pytest -m slow --ignore tests/compat "$@"

# Try Vestibule on every server as people run it, and print the table: works, refused in one line, or untested
[no-exit-message]
compat *arguments: _venv
    @{{ python }} -m tests.compat.install
    @exec {{ python }} -m pytest tests/compat --numprocesses 2 "$@"

# Run some tests without coverage: just try tests/unit/test_supervisor.py -k drain
[no-exit-message]
try *arguments: _venv
    @exec {{ python }} -m pytest "$@"

# Lint, check formats, types, import arrows, insecure calls and stray secrets
check: _venv
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    .venv/bin/lint-imports --no-logo
    .venv/bin/bandit --quiet --configfile pyproject.toml --recursive actors service ops dev
    git ls-files -z | xargs -0 .venv/bin/detect-secrets-hook --baseline .secrets.baseline

# Mend what can be mended by machine: imports, formats, simple findings
fmt: _venv
    .venv/bin/ruff check --fix-only .
    .venv/bin/ruff format .

# Pin anew what pyproject.toml asks for; `just lock --upgrade` takes the newest releases
lock *arguments: _venv
    {{ pins }} --all-extras pyproject.toml --output-file requirements-dev.lock "$@"
    {{ pins }} --constraint requirements-dev.lock pyproject.toml --output-file requirements.lock
    {{ pins }} requirements-tools.in --output-file requirements-tools.lock "$@"

# Look up the pinned packages of a deployment among the known vulnerabilities; a package not looked up fails
[no-exit-message]
audit: _venv
    @exec .venv/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# Measure this machine and the service on it: bcrypt ceiling, registrations, activations, CPU and memory
[no-exit-message]
bench *arguments: _venv
    @exec {{ python }} ops/bench/bench.py "$@"

# Kill servers and workers at random under load and count what was lost: nothing
[no-exit-message]
chaos *arguments: _venv
    @exec {{ python }} -m tests.faults.chaos "$@"

# Give the readers of untrusted text and a running service, on both loops, some 200,000 generated inputs: some minutes
[no-exit-message]
fuzz *arguments: _venv
    @exec {{ python }} -m pytest --hypothesis-profile fuzz tests/faults/hostile/test_hostile_fuzz.py tests/unit/test_json_body.py tests/unit/test_client_address.py tests/unit/test_email_addresses.py tests/unit/test_password.py "$@"

# Change actors/ in small ways and count what no unit test notices: just mutants actors.signup --floor 0 --survivors
[no-exit-message]
mutants *arguments: _venv
    @exec {{ python }} -m tests.mutants --floor {{ mutants_floor }} "$@"

# Show the metrics of a running service: just metrics --watch
[no-exit-message]
metrics *arguments: _venv
    @exec {{ python }} ops/metrics.py "$@"

# Show how many registrations become activations, and how long each step takes
[no-exit-message]
funnel *arguments: _venv
    @exec {{ python }} ops/funnel.py "$@"

# Register a canary against a running service, read its mail, activate it
[no-exit-message]
smoke *arguments: _venv
    @exec {{ python }} ops/smoke.py "$@"

# Look after the mail queue: just mail list --state dead
[no-exit-message]
mail *arguments: _venv
    @exec .venv/bin/vestibule mail "$@"

# Bring the database to the newest migration
[no-exit-message]
migrate *arguments: _venv
    @exec .venv/bin/vestibule migrate "$@"

# Check and print the settings that the environment gives, secrets masked
[no-exit-message]
config: _venv
    @exec .venv/bin/vestibule config check

# Take the pictures of docs/screenshots anew (needs Chromium)
[no-exit-message]
screenshots: _venv
    @exec {{ python }} -m tests.browser.screenshots docs/screenshots

# Build the wheel into dist/
[no-exit-message]
build: _venv
    @exec {{ python }} -m hatchling build --target wheel --directory dist

# Make .venv match the lock; a no-op when it does
_venv:
    @./dev .venv
