# `make demo` serves the demo application; `make test` runs every check. Both set up what they need.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
HOST   ?= 127.0.0.1

.PHONY: demo test lint types layers unit tree bench soak build clean format

demo: $(VENV)/.demo
	$(BIN)/sessiontree demo --host $(HOST) --port $(PORT)

test: lint types layers unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test tree
	MYPYPATH=.tree $(BIN)/mypy -p sessiontree >.tree/mypy.txt || { cat .tree/mypy.txt; exit 1; }
	@cat .tree/mypy.txt
	@files=$$(sed -n 's/.*in \([0-9]*\) source files.*/\1/p' .tree/mypy.txt); \
	    test "$${files:-0}" -ge 20 || { echo "mypy looked at too few files: is .tree/sessiontree whole?"; exit 1; }
	cd .tree && MYPYPATH=. "$(abspath $(BIN))/mypy" --config-file ../pyproject.toml examples

layers: $(VENV)/.test
	$(BIN)/lint-imports

unit: $(VENV)/.test
	$(BIN)/python -m pytest tests

# The long runs: what .ci/run does a twentieth of.
soak: $(VENV)/.test
	SESSIONTREE_SOAK=20 $(BIN)/python -m pytest tests
	$(BIN)/python -m benchmarks.stores --only footprint
	$(BIN)/python -m benchmarks.stores --only sweep

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.cookies
	$(BIN)/python -m benchmarks.stores
	$(BIN)/python -m benchmarks.redis
	$(BIN)/python -m benchmarks.postgres

format: $(VENV)/.test
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

build: $(VENV)/.test
	rm -rf build dist
	$(BIN)/python -m build

# Type checkers and documentation tools want a folder that has the package's name.
tree:
	@rm -rf .tree && mkdir -p .tree/sessiontree
	@for entry in *.py py.typed handlers stores caches cli; do ln -s "$(CURDIR)/$$entry" .tree/sessiontree/; done
	@ln -s "$(CURDIR)/examples" .tree/examples

clean:
	rm -rf $(VENV) .tree build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@sh tools/make-venv.sh "$(PYTHON)" "$(VENV)"

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.bench: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@
