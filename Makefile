# Everything stays in .venv. `make demo` and `make test` need nothing but Python 3.11 or newer and this folder.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# timm is a peer in the tests. Its torchvision need not work, so both come without what they ask for.
PEERS  := timm==1.0.31 torchvision==0.28.0

.PHONY: demo test check slow bench lock clean install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[fast]'
	touch $@

$(DEV): $(STAMP)
	$(PIP) install -c constraints.txt -e '.[fast,dev]'
	$(PIP) install --no-deps $(PEERS)
	touch $@

demo: $(STAMP)
	$(BIN)/python -m vitrine.demo

check: $(DEV)
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n 2 -m "not slow"

slow: check
	$(BIN)/pytest -m slow --timeout 3600

bench: $(DEV)
	mkdir -p runs/bench
	$(BIN)/python bench/train_step.py --out runs/bench/train_step.json

# Pins what a fresh installation of the ranges in pyproject.toml gives today.
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip -q install torch==2.13.0 && $(VENV)/lock/bin/pip -q install '.[fast,dev]'
	$(VENV)/lock/bin/pip list --format freeze --exclude vitrine --exclude pip --exclude setuptools > constraints.txt
	rm -rf $(VENV)/lock

clean:
	rm -rf $(VENV) runs/demo .mypy_cache .ruff_cache .pytest_cache
