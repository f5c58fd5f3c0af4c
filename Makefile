# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export MUJOCO_GL ?= egl

.PHONY: demo setup lint types test test-all bench clean

demo: $(READY)
	$(BIN)/pyramid demo --out demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo "cannot make .venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,sim,tune]"
	@touch $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Two processes of one thread each; the end-to-end tests share one demo and stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test: lint types
	$(PYTEST)

test-all: lint types
	$(PYTEST) -m "not gpu"

# The proof takes hours: see benchmarks/README.md.
bench: $(READY)
	@for script in $(filter-out benchmarks/proof.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache
