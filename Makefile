# make demo | test | lint | bench: each sets up what it needs, in .venv and (Debian, root) through apt.

.PHONY: demo test lint bench clean

demo: .venv/.run
	@exec .venv/bin/bridge demo

# Quick tests first; then the simulation, then real servers and kill -9.
test: .venv/.dev
	@.ci/servers
	.venv/bin/python -m pytest -q -m "not sim and not integration and not slow" tests/unit tests/contract
	.venv/bin/python -m pytest -q -m "sim or integration" tests

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/.dev
	@.ci/servers
	.venv/bin/python -m tests.bench

clean:
	rm -rf .venv dist build

.venv/.run: pyproject.toml .ci/bootstrap
	@.ci/bootstrap .
	@touch $@

.venv/.dev: pyproject.toml .ci/bootstrap
	@.ci/bootstrap '.[dev]'
	@touch .venv/.run $@
