# Everything stays in .venv. `make demo` and `make test` need nothing but Python 3.11 or newer and this folder.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# timm is a peer in the tests. Its torchvision need not work, so both come without what they ask for.
PEERS  := timm==1.0.31 torchvision==0.28.0
# Where Google's weights are at home: a peer of the long proofs alone.
NATIVE := jax==0.10.2 flax==0.12.8
JAX    := $(VENV)/.installed-jax

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
	rm -rf runs/demo
	$(BIN)/python examples/digit_pictures.py runs/demo/pictures
	$(BIN)/vitrine train digits --out runs/demo/model --max-time 40s
	$(BIN)/vitrine evaluate runs/demo/model digits --confusion runs/demo/confusion.png
	$(BIN)/vitrine predict runs/demo/model runs/demo/pictures/*.png --top 2
	$(BIN)/vitrine explain runs/demo/model runs/demo/pictures/digit_3.png --out runs/demo/attention.png
	@echo
	@echo "The model:     runs/demo/model/model.safetensors"
	@echo "Its report:    runs/demo/model/report.html"
	@echo "Its mistakes:  runs/demo/confusion.png"
	@echo "Its attention: runs/demo/attention.png"

check: $(DEV)
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a process: two processes whose threads wait for each other on two cores are many times slower.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

$(JAX): $(DEV)
	$(PIP) install -c constraints.txt $(NATIVE)
	touch $@

slow: check $(JAX)
	$(BIN)/pytest -m slow --timeout 3600

bench: $(DEV)
	mkdir -p runs/bench
	$(BIN)/python bench/train_step.py --out runs/bench/train_step.json
	$(BIN)/python bench/load.py --out runs/bench/load.json

# Pins what a fresh installation of the ranges in pyproject.toml gives today.
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip -q install torch==2.13.0 && $(VENV)/lock/bin/pip -q install '.[fast,dev]'
	$(VENV)/lock/bin/pip list --format freeze --exclude vitrine --exclude pip --exclude setuptools > constraints.txt
	rm -rf $(VENV)/lock

clean:
	rm -rf $(VENV) runs/demo .mypy_cache .ruff_cache .pytest_cache
