# Set-up and checks. `make` alone lists the targets.

PYTHON ?= python3
TORCH := torch==2.13.0
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help env tour quick test lab docs browser portable

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=python3.12 chooses the Python; TORCH_INDEX=URL chooses where torch comes from."

env: $(READY) ## create .venv with the exact versions of constraints.txt

# A person at a terminal sees pip's progress, a log only the steps. Torch comes first and alone, so that TORCH_INDEX
# decides on its build and constraints.txt on all else.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "i2b-lpo needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python env"; exit 1; }
	@echo "== .venv: create"
	@$(PYTHON) -m venv .venv
	@test -t 1 || quiet=-q; \
	pip="$(BIN)/python -m pip --disable-pip-version-check --no-input install $$quiet"; set -e; \
	echo "== .venv: install $(TORCH)"; \
	$$pip --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH); \
	echo "== .venv: install i2b-lpo and what it needs (some 160 packages, a few minutes)"; \
	$$pip -c constraints.txt hatchling; \
	$$pip -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@
	@echo "== .venv: ready"

tour: env ## train the bundled policy for a few minutes and write a page of what happened
	$(BIN)/i2b-lpo tour

lab: env ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab

# For a change at hand: what is left out is marked slow. Names the tests that have become slow.
quick: export HF_HUB_OFFLINE := 1
quick: export OMP_NUM_THREADS := 1
quick: env ## run lint, floors, types and the tests that aren't marked slow, in 90 seconds (types: 30 more at first)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 -m "not slow" --durations 5 --durations-min 2

docs: env ## build the site of notebooks, exercises and guides in site/html/
	$(BIN)/sphinx-build -q -W --keep-going -c docs -b html . site/html
	@echo "Site: site/html/index.html"

browser: env ## use the widgets in a real Chromium, on a slow page too
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs tests/widgets/test_browser.py

portable: env ## run tests and notebooks as other processors would compute them (over an hour)
	$(BIN)/python scripts/portable.py

# Two test processes with one thread each suit a two-core machine, and one thread gives the same sums everywhere.
test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: env ## run every check that CI runs: lint, floors, types, tests, doctests, notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --ignore=tests/test_notebooks.py --ignore=tests/widgets/test_browser.py
	$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --nbval tests/widgets/test_browser.py tests/test_notebooks.py $(wildcard notebooks/*.ipynb tutorials/solutions/*.ipynb)
