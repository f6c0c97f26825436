# make train: from nothing to a trained model that speaks. make align: on to one that answers as is preferred.
# make train EXTRAS=cuda (or tpu, wandb): with what they need. make test: what CI runs. make bench: against PyTorch.
PYTHON ?= python3
INSTALLED := .venv/installed$(if $(EXTRAS),-with-$(EXTRAS))
BIN := .venv/bin
# The lock file holds the exact versions that were tested.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: train align test bench clean

train: $(INSTALLED)
	$(BIN)/python train.py $(ARGS)

align: $(INSTALLED)
	$(BIN)/python -m recipes.align $(ARGS)

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

# The last thing that venv writes. One that failed half-way, as without Debian's python3-venv, is begun anew.
.venv/bin/activate:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python %s.%s is too old: 3.11 or newer is needed, as by make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear .venv

.venv/installed: .venv/bin/activate pyproject.toml requirements.lock
	$(INSTALL) --editable .
	touch $@

.venv/installed-with-%: .venv/installed
	$(INSTALL) --editable '.[$*]'
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable '.[test]'
	touch $@

.venv/installed-bench: .venv/installed-test
	$(INSTALL) --editable '.[test,bench]'
	touch $@

clean:
	rm -rf .venv
