# make demo | test | slow | lint | bench: each sets up what it needs, in .venv and (Debian, root) through apt.

PYTEST = .venv/bin/python -m pytest -q

.PHONY: demo test slow lint bench clean

demo: .venv/.run
	@exec .venv/bin/bridge demo

# Quick tests first; then the simulation, real servers and kill -9. What compares timings runs alone.
test: .venv/.dev
	@.ci/servers
	$(PYTEST) -n auto -m "not sim and not integration and not slow" tests/unit tests/contract
	$(PYTEST) -n auto -m "(sim or integration) and not slow and not alone" tests
	$(PYTEST) -m "alone and not slow" tests

# Minutes each: soak, a hundred thousand cases, a clean root file system.
slow: .venv/.dev
	@.ci/servers
	$(PYTEST) -m slow tests

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@PATH="$(CURDIR)/.cache/bin:$$PATH"; if command -v helm >/dev/null; then \
	    echo "helm lint helm/bridge"; \
	    for values in helm/bridge/ci/*-values.yaml; do \
	        helm lint --quiet --strict --kube-version 1.31 helm/bridge -f "$$values" || exit 1; \
	    done; fi

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
