# Needs Python 3.11+ and make; everything else goes into .venv, which is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out
# The CPU build of PyTorch is enough for everything here and a tenth of the download; set TORCH= to choose your own.
TORCH  ?= torch==2.13.0

.PHONY: demo test lint clean install install-test

demo: install  ## compress the embedded model, compare with scalar baselines, write images and an HTML report
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-trellis-3bit --bits 3 --overwrite
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-additive-3bit --method additive --bits 3 --overwrite
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-4bit --method gptq --bits 4 --overwrite
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-3bit --method gptq --bits 3 --overwrite
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-rtn-3bit --method rtn --bits 3 --overwrite
	$(BIN)/vqcompress report shapes $(OUT)/shapes-*bit -o $(OUT)/report
	@echo "Images: $(OUT)/report/grid.png   Report: $(OUT)/report/report.html"

test: install-test lint  ## everything that CI checks
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
