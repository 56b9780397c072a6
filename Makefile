# Needs Python 3.11+ and make; everything else goes into .venv, which is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out
# The CPU build of PyTorch is enough for everything here and a tenth of the download; set TORCH= to choose your own.
TORCH  ?= torch==2.13.0


.PHONY: demo results test test-lowest lint clean install install-test

CALIBRATION := --calibration $(OUT)/shapes-calibration --overwrite

demo: install  ## compress the embedded model, compare with scalar baselines, write images and an HTML report
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-trellis-3bit --bits 3 $(CALIBRATION)
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-4bit --method gptq --bits 4 $(CALIBRATION)
	$(BIN)/vqcompress quantize shapes -o $(OUT)/shapes-gptq-3bit --method gptq --bits 3 $(CALIBRATION)
	$(BIN)/vqcompress report shapes $(OUT)/shapes-trellis-3bit $(OUT)/shapes-gptq-4bit $(OUT)/shapes-gptq-3bit -o $(OUT)/report
	@echo "Images: $(OUT)/report/grid.png   Report: $(OUT)/report/report.html"

# Every method at 2, 3 and 4 bits, once with bits dealt out over the model and once the same for every layer.
RESULTS := $(foreach bits,3 2 4,$(foreach method,trellis additive gptq,$(method)-model-$(bits)) \
  $(foreach method,trellis additive gptq rtn,$(method)-layer-$(bits)))

results: install  ## the comparison in docs/results
	for variant in $(RESULTS); do \
	  budget=$${variant#*-}; \
	  $(BIN)/vqcompress quantize shapes -o $(OUT)/results/$$variant --method $${variant%%-*} --bits $${variant##*-} \
	    --budget $${budget%-*} $(CALIBRATION) || exit 1; done
	$(BIN)/vqcompress report shapes $(RESULTS:%=$(OUT)/results/%) --count 64 -o $(OUT)/results/report

test: install-test lint  ## everything that CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The lowest versions that pyproject.toml declares, in an environment of their own. The lowest torch comes with its CUDA
# libraries (4 GB) and nothing here needs a GPU, so torch stays the one above; LOWEST_TORCH=torch==2.11.0 runs that too.
LOWEST_TORCH ?= $(TORCH)
LOWEST := $(VENV)-lowest

test-lowest: $(LOWEST)/.installed  ## diffusers, transformers and peft at the lowest versions that pyproject.toml declares
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/integrations tests/layers -m "not slow" -n 2 --dist loadfile

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct "$(LOWEST_TORCH)" -e ".[test]"
	touch $@

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
	rm -rf $(VENV) $(LOWEST) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
