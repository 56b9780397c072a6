# Needs Python 3.11+ and make. Everything else is installed into .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out
# The CPU build of PyTorch is enough for everything here and a tenth of the download. Set TORCH= to choose another.
TORCH  ?= torch==2.13.0


.PHONY: demo docs evidence results test test-lowest fuzz kills soak lint clean install install-test release-check

# The embedded model that `make results` is about: shapes, shapes-dit, shapes-moe or posters.
MODEL ?= shapes
CALIBRATION = --calibration $(OUT)/$(MODEL)-calibration --overwrite

demo: MODEL := shapes-dit
demo: install  ## compress an embedded model and compare it with scalar codes, the same bits in every layer: images, report
	$(BIN)/vqcompress quantize $(MODEL) -o $(OUT)/demo/trellis-3 --bits 3 --budget layer $(CALIBRATION)
	$(BIN)/vqcompress quantize $(MODEL) -o $(OUT)/demo/gptq-4 --method gptq --bits 4 $(CALIBRATION)
	$(BIN)/vqcompress quantize $(MODEL) -o $(OUT)/demo/gptq-3 --method gptq --bits 3 $(CALIBRATION)
	$(BIN)/vqcompress report $(MODEL) $(OUT)/demo/trellis-3 $(OUT)/demo/gptq-4 $(OUT)/demo/gptq-3 -o $(OUT)/report
	@echo "Images: $(OUT)/report/grid.png   Report: $(OUT)/report/report.html"

# Every method at 2, 3 and 4 bits, once with bits allocated over the model and once with the same bits in every layer.
RESULTS := $(foreach bits,3 2 4,$(foreach method,trellis additive gptq,$(method)-model-$(bits)) \
  $(foreach method,trellis additive gptq rtn,$(method)-layer-$(bits)))

results: install  ## make the comparison in docs/results
	for variant in $(RESULTS); do \
	  budget=$${variant#*-}; \
	  $(BIN)/vqcompress quantize $(MODEL) -o $(OUT)/results/$(MODEL)/$$variant --method $${variant%%-*} --bits $${variant##*-} \
	    --budget $${budget%-*} $(CALIBRATION) || exit 1; done
	$(BIN)/vqcompress report $(MODEL) $(RESULTS:%=$(OUT)/results/$(MODEL)/%) --count 64 -o $(OUT)/results/$(MODEL)/report

# RESULT names some of them (`python benchmarks/evidence.py --list`); all take hours of two cores.
RESULT ?=

# Packages under another licence (SDNQ), or with other versions than ours, are compared from environments of their own
# (vqcompress/peers), made once and only where a result asks for other packages. One that cannot be installed is named in
# the report and left out.
ISOLATED := sdnq llmcompressor gptqmodel
sdnq_NEEDS := sdnq diffusers
llmcompressor_NEEDS := llmcompressor compressed-tensors
gptqmodel_NEEDS := gptqmodel
ASKED_FOR := $(if $(RESULT),$(findstring peers,$(RESULT)),peers)

evidence: export VQCOMPRESS_SDNQ_PYTHON ?= $(abspath $(VENV)-sdnq/bin/python)
evidence: export VQCOMPRESS_LLMCOMPRESSOR_PYTHON ?= $(abspath $(VENV)-llmcompressor/bin/python)
evidence: export VQCOMPRESS_GPTQMODEL_PYTHON ?= $(abspath $(VENV)-gptqmodel/bin/python)
evidence: install $(if $(ASKED_FOR),$(ISOLATED:%=$(VENV)-%/.installed))  ## renew published results: document, numbers and stamp, from commands alone
	$(BIN)/python -m pip install --quiet -e ".[peers,networks]"
	$(BIN)/python benchmarks/evidence.py $(RESULT)

$(ISOLATED:%=$(VENV)-%/.installed): $(VENV)-%/.installed:
	$(PYTHON) -m venv $(VENV)-$*
	-$(VENV)-$*/bin/python -m pip install --quiet $(TORCH) safetensors $($*_NEEDS) && touch $@

test: install-test lint  ## run everything that CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Folders, bundles and kernels with what a stranger may have written; `make test` runs a slice of it. The same command goes
# on after a stop, and SEED gives other cases.
CASES ?= 2000
SEED  ?= 1
fuzz: install-test  ## open CASES mutated folders in every way and count what went wrong
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED) --out $(OUT)/fuzz

# The lowest versions that pyproject.toml declares, all together, in an environment of their own. The lowest torch comes
# only with its CUDA libraries (4 GB to download), so torch is the one above, installed first. LOWEST_TORCH=torch==2.11.0
# runs the same tests with the lowest torch.
LOWEST_TORCH ?= $(TORCH)
LOWEST := $(VENV)-lowest
LOWEST_INSTALLED := $(LOWEST)/.installed-$(subst ==,-,$(LOWEST_TORCH))
# The tests that depend on other libraries; the rest is our own arithmetic on torch. Use WORKERS=1 where a core is busy.
LOWEST_TESTS ?= tests/integrations tests/layers
WORKERS ?= 2

# numba caches compiled loops beside the sources, for one version of numba only: hence a cache of their own.
test-lowest: $(LOWEST_INSTALLED)  ## run the tests of the integrations at the lowest declared versions
	OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=$(abspath $(LOWEST))/numba $(LOWEST)/bin/python -m pytest $(LOWEST_TESTS) -m "not slow" -n $(WORKERS) --dist loadfile

$(LOWEST_INSTALLED): pyproject.toml tests/lowest_versions.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet "$(LOWEST_TORCH)" uv
	$(LOWEST)/bin/python tests/lowest_versions.py --except torch > $(LOWEST)/lowest.txt
	UV_NATIVE_TLS=1 $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --constraint $(LOWEST)/lowest.txt "$(LOWEST_TORCH)" -e ".[test]"
	touch $@

COUNT ?= 50

kills: install-test  ## kill tiny runs COUNT times at random; each must then end with equal bytes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kills --count $(COUNT) --seed $(SEED)

soak: install-test  ## load, generate and free 200 times, quantize 50 times: nothing may grow or be left
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak

docs: $(VENV)/.installed-docs  ## build the documentation into out/site, with warnings as errors
	$(BIN)/python -m mkdocs build --strict --site-dir $(abspath $(OUT))/site

release-check: install-test  ## build sdist and wheel, and try the wheel in an empty environment
	$(BIN)/python tests/release_check.py --torch "$(TORCH)"

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

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(ISOLATED:%=$(VENV)-%) $(LOWEST) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
