# Two commands: `make reproduce` runs the whole chain, `make test` runs what CI runs.
# Both set everything up in .venv first, and both are quick when there is nothing to do.
PYTHON ?= python3
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH"

# Left out of the fast tests: what starts processes, servers or the whole chain.
WHOLE := e2e or equality or kill or flow or browser
ELSEWHERE := slow or gpu

# A project that was downloaded as an archive; dvc's own words name no way on.
define CHECK_GIT
@git rev-parse --git-dir >/dev/null 2>&1 || { \
	echo "error: $(CURDIR) is not a git repository, and dvc works in one only."; \
	echo "  Get the project by git clone, or here: git init && git add --all && git commit -m downloaded"; \
	exit 2; } >&2
endef

.PHONY: help setup reproduce report test lint format bench peers schema clean
.DEFAULT_GOAL := help

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install the locked packages into .venv
	@$(PYTHON) pipeline/bootstrap.py

reproduce: setup ## the whole chain: images to report
	$(CHECK_GIT)
	@$(RUN) dvc repro
	@$(RUN) python -m pipeline results

report: setup ## bring the report up to date and show its table
	$(CHECK_GIT)
	@$(RUN) dvc repro report
	@$(RUN) python -m pipeline results

test: lint ## what CI runs, the quick checks first
	@$(RUN) python -m pytest -q -m "not ($(WHOLE) or $(ELSEWHERE))"
	@$(RUN) python -m pytest -q -m "($(WHOLE)) and not ($(ELSEWHERE))"

lint: setup ## format, lint, types and import contracts, checked
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) ty check
	@$(RUN) lint-imports

format: setup ## format the code and mend what can be mended
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

bench: setup ## measure speed against named peers (not part of the tests)
	@$(RUN) sh -c 'for file in tests/benchmarks/bench_*.py; do python "$$file" || exit; done'

peers: setup ## install what `make bench` compares with, beside the locked packages
	@$(RUN) $$(command -v uv || echo .venv-tools/bin/uv) pip install --quiet \
		--python .venv/bin/python -r requirements-bench.lock

schema: setup ## write the JSON schema of params.yaml that editors use
	@$(RUN) python -m pipeline schema --write

clean: ## remove what the tools left; keeps data, results, unfinished runs and .venv
	@rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find pipeline stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
