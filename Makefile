# Every target sets up what it needs in its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := -m pip install --disable-pip-version-check --quiet
PINNED := $(INSTALL) --constraint constraints.txt
PIP := $(BIN)/python $(PINNED)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
EVERYTHING := --editable ".[examples,lightning,report,transformers]"
# Workers start on neighbouring tests, which share fixtures; one that is done takes from another.
PARALLEL := -m pytest -n auto --dist worksteal
PYTEST := $(BIN)/python $(PARALLEL)
COVERAGE := --cov --cov-report=term --cov-fail-under=95

.PHONY: demo test test-all newest test-newest test-wheel test-transformers-oldest lint check docs bench clean

demo: $(VENV)/.examples ## Train the example without and with adaptmix, and write the verdict page
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(VENV)/.dev ## Run the test suite without its slow tests
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev ## Run every test, with the coverage the suite must have
	$(PYTEST) $(COVERAGE) $(ARGS)

newest: $(VENV)-newest/.torch
	$(VENV)-newest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager \
		"$(TORCH)" $(EVERYTHING) --group test
	$(VENV)-newest/bin/python -m pip list | grep -iE "^(accelerate|datasets|lightning|peft|torch|transformers|trl) "

test-newest: newest ## Run the integrations' tests on today's releases
	$(VENV)-newest/bin/python $(PARALLEL) tests/integrations $(ARGS)

test-wheel: $(VENV)-wheel/.ready ## Build the wheel and test it in a folder without the source
	rm -rf build/wheel && mkdir -p build/wheel
	$(VENV)-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(VENV)-wheel/bin/python $(INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	cp -r tests pyproject.toml build/wheel
	cd build/wheel && "$(abspath $(VENV)-wheel)/bin/python" -m pytest -c pyproject.toml \
		-o pythonpath=. -p no:cacheprovider tests/wheel/check_wheel.py tests/test_controller.py \
		tests/test_doctests.py tests/policies/test_variance_aware.py $(ARGS)

test-transformers-oldest: $(VENV)-oldest/.ready ## Run the Trainer's tests on the oldest transformers
	$(VENV)-oldest/bin/python -m pytest tests/integrations/adaptmix_transformers $(ARGS)

lint: $(VENV)/.dev ## Format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What keeps one core busy runs two at a time; the tests that follow use every core.
check: ## All that CI runs: lint, docs, test-wheel, test-newest, test-all
	$(MAKE) --jobs=2 --output-sync=target lint docs test-wheel newest
	$(MAKE) --old-file=newest test-newest test-all

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)-docs/.ready ## Build the guide into build/site; a warning is an error
	PATH="$(abspath $(VENV)-docs)/bin:$$PATH" mkdocs build --strict --quiet \
		--config-file examples/guide/site/mkdocs.yml --site-dir "$(CURDIR)/build/site" $(ARGS)

bench: $(VENV)-bench/.ready ## Measure statistics beside other packages; writes table and picture
	$(VENV)-bench/bin/python -m tests.benchmarks.bench_statistics $(ARGS)

clean: ## Remove what the targets made
	rm -rf $(VENV) $(VENV)-newest $(VENV)-wheel $(VENV)-docs $(VENV)-oldest $(VENV)-bench build \
		.mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage

# torch comes first and exactly, so that no dependency can pull in another build of it.
# A pip that knows dependency groups comes next.
%/.torch: constraints.txt
	$(PYTHON) -m venv $*
	$*/bin/python $(PINNED) "$(TORCH)"
	$*/bin/python $(PINNED) --upgrade pip
	touch $@

$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[examples]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) $(EVERYTHING) --group dev
	touch $@

# The core's own dependencies and nothing else, so that the wheel must do without the extras.
$(VENV)-wheel/.ready: $(VENV)-wheel/.torch pyproject.toml
	$(VENV)-wheel/bin/python $(PINNED) . pytest hypothesis
	touch $@

# Pages are built from the source as text: torch is not needed.
$(VENV)-docs/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python $(PINNED) --upgrade pip
	$(VENV)-docs/bin/python $(PINNED) --group docs
	touch $@

# What adaptmix is compared with; without torchvision, which one of them asks for and does not need.
$(VENV)-bench/.ready: $(VENV)-bench/.torch pyproject.toml
	$(VENV)-bench/bin/python $(PINNED) --editable ".[examples,transformers]" einops unfoldNd opacus==1.6.0
	$(VENV)-bench/bin/python $(PINNED) --no-deps backpack-for-pytorch==1.7.1
	touch $@

# The lower bounds of the extra "transformers"; TRL needs newer ones, so its tests are skipped.
$(VENV)-oldest/.ready: $(VENV)-oldest/.torch pyproject.toml
	$(VENV)-oldest/bin/python $(INSTALL) transformers==4.57.1 accelerate==1.10.1 \
		"peft<0.18" "datasets<5" "pytest>=8.3" hypothesis --editable .
	touch $@

.PRECIOUS: %/.torch
