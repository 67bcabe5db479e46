# On a fresh machine with Python >= 3.10: `make demo` or `make test`; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
MODULES := $(subst /,.,$(patsubst %.py,%,$(filter-out %/__init__.py,$(wildcard ddpm_unet/*/*.py))))

.PHONY: help env demo test bench docs lint types format clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY)  ## .venv alone

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[metrics,volumes,track]"
	$(BIN)/python -m pip install --quiet --no-deps histolytics==0.3.0
	touch $(READY)

demo: $(READY)  ## what the shipped models do, then a short training; images in runs/demo
	$(BIN)/python scripts/sample.py --model samples/histology64/model --sampler ddim --steps 50 \
		--out runs/demo/shipped
	$(BIN)/python scripts/compare.py "the shipped model"=runs/demo/shipped --out runs/demo/shipped.png
	$(BIN)/accelerate launch scripts/train_ddpm.py --config configs/demo.yaml
	$(BIN)/python scripts/sample.py --model runs/demo/model --steps 250 --out runs/demo/generated
	$(BIN)/python scripts/compare.py "after a few minutes"=runs/demo/generated \
		--config configs/demo.yaml --out runs/demo/demo.png
	$(BIN)/python scripts/train_seg.py --init samples/histology64/model --run runs/demo_nuclei \
		--train.steps 100
	@echo "Images: runs/demo/shipped.png and demo.png (generated beside real), runs/demo_nuclei/test.png (nuclei: mask, prediction)"

$(TOOLS): $(READY) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev,metrics,volumes,track,bio,demo,lora,tests]"
	touch $(TOOLS)

test: $(TOOLS)  ## all tests
	$(BIN)/python -m pytest

bench: $(READY)  ## speed and memory beside other toolkits
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python scripts/benchmarks $(ARGS)

docs: $(TOOLS)  ## the API from its docstrings, as pages in build/docs
	$(BIN)/python -m pip install --quiet pdoc
	$(BIN)/pdoc --output-directory build/docs --docformat google ddpm_unet $(MODULES)

lint: $(TOOLS)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)  ## mypy
	$(BIN)/mypy

format: $(TOOLS)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and what tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
