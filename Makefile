# Needs Python 3.11+ and make; everything else goes into .venv, which is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out
# The CPU build of PyTorch is enough for everything here and a tenth of the download; set TORCH= to choose your own.
TORCH  ?= torch==2.13.0


.PHONY: demo results test lint clean install install-test

CALIBRATION := --calibration $(OUT)/shapes-calibration --overwrite

demo: install  ## compress the embedded model, compare with scalar baselines, write images and an HTML report
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-trellis-3bit --bits 3 $(CALIBRATION)
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-4bit --method gptq --bits 4 $(CALIBRATION)
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-3bit --method gptq --bits 3 $(CALIBRATION)
	$(BIN)/vqcompress report shapes $(OUT)/shapes-trellis-3bit $(OUT)/shapes-gptq-4bit $(OUT)/shapes-gptq-3bit -o $(OUT)/report
	@echo "Images: $(OUT)/report/grid.png   Report: $(OUT)/report/report.html"

VECTOR := $(foreach bits,2 3 4,trellis-$(bits) additive-$(bits))
SCALAR := $(foreach bits,2 3 4,gptq-$(bits) rtn-$(bits))

results: install  ## the comparison in docs/results: every method at 2, 3 and 4 bits, and a scalar code with a dealt-out budget
	for variant in $(VECTOR) $(SCALAR); do \
	  $(BIN)/vqcompress quantize shapes -o $(OUT)/results/$$variant \
	    --method $${variant%-*} --bits $${variant#*-} $(CALIBRATION) || exit 1; done
	$(BIN)/vqcompress quantize shapes -o $(OUT)/results/gptq-mixed-3 --method gptq --bits 3 --budget model $(CALIBRATION)
	$(BIN)/vqcompress report shapes $(foreach variant,$(VECTOR) $(SCALAR) gptq-mixed-3,$(OUT)/results/$(variant)) \
	  --count 64 -o $(OUT)/results/report

test: install-test lint  ## everything that CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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
