# Every target sets up what it needs in its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test test-transformers-oldest lint check bench clean

demo: $(VENV)/.examples ## Train the example twice, print its table and write its picture
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(VENV)/.dev ## Run the test suite, with the coverage it must have
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term --cov-fail-under=95 $(ARGS)

test-transformers-oldest: $(VENV)-oldest/.ready ## Run the Trainer's tests on the oldest transformers
	$(VENV)-oldest/bin/python -m pytest tests/integrations/adaptmix_transformers $(ARGS)

lint: $(VENV)/.dev ## Format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## All that CI runs

bench: $(VENV)-bench/.ready ## Measure statistics beside other packages; writes table and picture
	$(VENV)-bench/bin/python -m tests.benchmarks.bench_statistics $(ARGS)

clean: ## Remove what the targets made
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage

# torch comes first and exactly, so that no dependency can pull in another build of it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	touch $@

$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[examples]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev]"
	touch $@

# What adaptmix is compared with; without torchvision, which one of them asks for and does not need.
$(VENV)-bench/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-bench/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable ".[examples,transformers]" einops unfoldNd opacus==1.6.0
	$(VENV)-bench/bin/python -m pip install --quiet --no-deps backpack-for-pytorch==1.7.1
	touch $@

# The lower bounds of the extra "transformers"; TRL needs newer ones, so its tests are skipped.
$(VENV)-oldest/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-oldest/bin/python -m pip install --quiet transformers==4.57.1 accelerate==1.10.1 \
		"peft<0.18" "datasets<5" "pytest>=8.3" hypothesis --editable .
	touch $@
