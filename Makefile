# Two commands do all the set-up: `make demo` and `make test`.
# Needs Python 3.11 or newer with pip. PYTHON=python3.12 make demo picks another interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Nets this small run fastest on one thread, and two runs side by side use two cores.
export OMP_NUM_THREADS ?= 1

# One more than there are cores: some tests wait, for another process or for a limit of time.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))')

.PHONY: demo test test-all hosts docs bench lint tier coverage size clean

demo: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/demo.py

# Lint and types take one core for most of a minute, which the tests need not wait for.
test: $(VENV)/test.stamp
	$(MAKE) --no-print-directory -j2 lint tier

tier: $(VENV)/test.stamp
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal

test-all: lint
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "slow or not slow"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check optland recipes tests benchmarks docs
	$(BIN)/ruff format --check optland recipes tests benchmarks docs/examples
	$(BIN)/mypy

# The trainers that people use, in an environment of its own that sees what the project's own has.
# HOSTS= runs the default tier of these tests alone.
HOSTS ?= -m "slow or not slow"
hosts: $(VENV)/hosts/stamp
	$(VENV)/hosts/bin/python -m pytest -q -n $(WORKERS) tests/integrations $(HOSTS)

# The site of docs/, into site/, in an environment of its own that sees what the project's own has.
docs: $(VENV)/docs/stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/python -m mkdocs build --strict --quiet

# The table of the lines that no test of the default tier runs; what runs in a process of its own is counted too.
coverage: $(VENV)/test.stamp
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered

size: $(VENV)/demo.stamp
	$(BIN)/python tests/contracts/size.py

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/demo.py --seeds 1 2 3 4 5 --result benchmarks/results/demo.json
	$(BIN)/python benchmarks/configs.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/curvature_nets.py
	$(BIN)/python benchmarks/slices.py
	$(BIN)/python benchmarks/saddle.py
	$(BIN)/python benchmarks/connectivity.py
	$(BIN)/python benchmarks/sam_cost.py
	$(BIN)/python benchmarks/sam_quality.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/spikes.py
	$(BIN)/python benchmarks/plateau.py
	$(BIN)/python benchmarks/conformance.py
	$(BIN)/python benchmarks/torch_contract.py
	$(BIN)/python benchmarks/readme.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optland needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[recipes]'
	touch $@

# pip's own --group came late (25.1), so the groups are read out of pyproject.toml here.
$(VENV)/test.stamp $(VENV)/bench.stamp: $(VENV)/%.stamp: $(VENV)/demo.stamp
	$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$*"]))' > $(VENV)/$*.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(VENV)/$*.txt
	touch $@

$(VENV)/hosts/stamp $(VENV)/docs/stamp: $(VENV)/%/stamp: $(VENV)/test.stamp
	$(BIN)/python -m venv $(VENV)/$*
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > $$($(VENV)/$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth
	$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$*"]))' > $(VENV)/$*.txt
	$(VENV)/$*/bin/pip install --quiet --disable-pip-version-check -r $(VENV)/$*.txt
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
