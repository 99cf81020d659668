# `make help` lists the targets. Variables: see docs/configuration.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APP := .venv-app
PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))
DATA ?= data/imagenet
EXPERIMENT ?= $(if $(filter shapes,$(DATA)),demo,imagenet256)
SIZE ?= 662M
RUN ?= runs
DEVICES ?= auto
NODES ?= 1
STRATEGY ?=
PIP_ARGS ?=
ARGS ?=
HERE := $(RUN)/$(EXPERIMENT)
CONFIGS := experiments/$(EXPERIMENT)
# recipes of other folders have one size, unless SIZE is given
SIZES := $(if $(or $(filter imagenet256 imagenet512 release,$(EXPERIMENT)),$(filter-out file,$(origin SIZE))),sizes $(EXPERIMENT))
SIZED := $(firstword $(foreach folder,$(SIZES),$(wildcard experiments/$(folder)/$(SIZE).yaml)))
TOKENIZER ?= $(HERE)/stage2/artifact
CACHE ?= $(HERE)/tokens
GENERATOR ?= $(HERE)/generator$(if $(SIZED),-$(SIZE))/artifact
REFERENCE ?= data/VIRTUAL_$(if $(filter imagenet512,$(EXPERIMENT)),imagenet512,imagenet256_labeled).npz
EXTRACTOR ?=
COUNT ?= 50000
FIT := $(BIN)/alitok fit
SHARED := $(if $(filter-out auto 1,$(DEVICES)),$(BIN)/torchrun --standalone --nproc-per-node $(DEVICES) -m alitok,$(BIN)/alitok)
MEASURE := $(SHARED) evaluate $(if $(EXTRACTOR),--extractor $(EXTRACTOR))
TRAINER := --define.run $(HERE) --trainer.devices $(DEVICES) --trainer.num_nodes $(NODES)
OVERLAY := $(if $(STRATEGY),-c experiments/strategies/$(STRATEGY).yaml)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-browser lint train-tokenizer tokenize train-ar eval-fid bench ablation league known-size

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/installed  ## create .venv and install (PIP_ARGS: a CPU-only torch, a mirror)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## the whole line on embedded data: twelve minutes on a CPU, ends in runs/demo/report.html
	$(BIN)/alitok demo --out $(RUN)/demo $(ARGS)

test: setup  ## the tests, on CPU without network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup  ## the long tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(APP)/installed  ## the app in a browser; Debian's chromium and chromium-driver must be there
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest -m slow tests/app/test_browser.py $(ARGS)

# gradio and selenium, laid over .venv: that one stays without them, and keeps the versions of constraints.txt
$(APP)/installed: $(VENV)/installed
	$(BIN)/python -m venv $(APP)
	$(BIN)/python -c "$(PACKAGES)" > "$$($(APP)/bin/python -c "$(PACKAGES)")/under.pth"
	$(APP)/bin/python -m pip install --quiet $(PIP_ARGS) -e '.[app]' selenium
	@touch $@

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

train-tokenizer: setup  ## stage 1, then stage 2 (EXPERIMENT, DATA, RUN, DEVICES, STRATEGY)
	$(FIT) -c $(CONFIGS)/tokenizer-stage1.yaml $(OVERLAY) $(TRAINER) --define.source $(DATA) $(ARGS)
	$(FIT) -c $(CONFIGS)/tokenizer-stage2.yaml $(OVERLAY) $(TRAINER) --define.source $(DATA) $(ARGS)

tokenize: setup  ## the ten-crop token cache of DATA (DEVICES share the work)
	$(SHARED) tokenize --tokenizer $(TOKENIZER) --data $(DATA) --out $(CACHE) $(if $(filter tokenize,$(MAKECMDGOALS)),$(ARGS))

known-size:
	@test -n "$(SIZED)" -o -z "$(SIZES)" || { echo "make: there is no SIZE=$(SIZE); experiments/sizes has $(notdir $(basename $(wildcard experiments/sizes/*.yaml)))." >&2; exit 2; }

train-ar: known-size setup tokenize  ## the generator, SIZE=177M | 318M | 662M; encodes the pictures first if there is no cache
	$(FIT) -c $(CONFIGS)/generator.yaml $(if $(SIZED),-c $(SIZED)) $(OVERLAY) $(TRAINER) --define.cache $(CACHE) --define.tokenizer $(TOKENIZER) $(ARGS)

eval-fid: known-size setup  ## rFID of TOKENIZER (validation images of DATA) and gFID of COUNT samples (against REFERENCE, training images)
	@case "$(REFERENCE)" in *.npz) test -e "$(REFERENCE)" || { echo "eval-fid: no reference $(REFERENCE); download ADM's $(notdir $(REFERENCE)) there, or name another with REFERENCE=" >&2; exit 2; };; esac
	@case "$(GENERATOR)" in */*/*) test -e "$(GENERATOR)" || { echo "eval-fid: no generator $(GENERATOR); make train-ar, or name another with GENERATOR=" >&2; exit 2; };; esac
	@echo "rFID: reconstructions of the validation images of $(DATA), against those images"
	$(MEASURE) --reconstruction --tokenizer $(TOKENIZER) --data $(DATA) --json $(HERE)/rfid.json
	@echo "gFID: $(COUNT) samples, against $(REFERENCE) (training images)"
	$(SHARED) sample --generator $(GENERATOR) --tokenizer $(TOKENIZER) --count $(COUNT) --out $(HERE)/samples-$(SIZE).npz
	$(MEASURE) $(HERE)/samples-$(SIZE).npz --reference $(REFERENCE) --json $(HERE)/gfid-$(SIZE).json

bench: setup  ## how fast sampling, training, tokenizing, data and evaluation are here (ten minutes on a CPU)
	$(BIN)/alitok bench $(ARGS)

league: DATA := $(if $(filter file,$(origin DATA)),uoft-cs/cifar10,$(DATA))
league: setup  ## every idea against its base at a laptop's size, on DATA (default uoft-cs/cifar10): hours, continues where it stopped
	$(BIN)/alitok league --data $(DATA) --out $(RUN)/league --results docs/results/league $(ARGS)

ablation: DATA := $(if $(filter file,$(origin DATA)),uoft-cs/cifar10,$(DATA))
ablation: setup  ## the ladder of the paper's ablation on DATA (default uoft-cs/cifar10): hours, continues where it stopped
	$(BIN)/alitok ablation --data $(DATA) --out $(RUN)/ablation --results docs/results/ablation-$(notdir $(DATA)) $(ARGS)
