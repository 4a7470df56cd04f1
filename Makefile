# `make` lists what can be made. Needs Python 3.11.5 to 3.13 with venv, nothing else.

NOTEBOOK  ?= notebooks/01-llava-mpt.ipynb
OUTPUT    ?= output
MODEL     ?= internvl2-1b
FOLDER    ?= models/$(MODEL)
PRECISION ?= fp16,int8,int4
WORKERS   ?= auto
TORCH     ?= cpu
USERS     ?= 10

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
# Bytecode is made of what is imported, see `.installed`; of everything it takes as long as installing.
PIP_INSTALL := -m pip install --disable-pip-version-check --no-input --no-compile
INSTALL = $(BIN)/python $(PIP_INSTALL)
# A folder of wheels that `make wheelhouse` made is all that pip asks then.
INSTALL += $(if $(WHEELHOUSE),--no-index --find-links "$(WHEELHOUSE)")

# The environment's own Python first, so that an existing environment is used as it is.
CANDIDATES := $(if $(PYTHON),$(PYTHON),$(BIN)/python python3 python3.13 python3.12 python3.11 python)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 14))
NONE := No Python 3.11.5 to 3.13 with its venv module was found; install one, or name it with make PYTHON=/path/to/python.
ifdef WHEELHOUSE
SUITABLE := import glob, platform, sys, venv, ensurepip; \
	kind = '/torch-*-cp%d%d-*%s.whl' % (*sys.version_info[:2], platform.machine().lower()); \
	sys.exit(sys.version_info[:3] < (3, 11, 5) or not glob.glob('$(WHEELHOUSE)' + kind))
NONE := The wheels in $(WHEELHOUSE) are for another Python or another kind of computer, or are not there; name the right Python with make PYTHON=/path/to/python.
endif
# `make PYTHON=python3.12` chooses another.
FIND_PYTHON = for candidate in $(CANDIDATES); do \
		if "$$candidate" -c "$(SUITABLE)" 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "$(NONE)" >&2; exit 1; fi

# These libraries call home unless told not to; `helpers` sets the same for the programs it starts.
export GRADIO_ANALYTICS_ENABLED = False
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export PYTHONUTF8 = 1
# Many containers set it, and each program would compile PyTorch anew: 24 seconds instead of 10.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run lab test check integration genai peers clients cluster shuffled torture soak browser screenshots full-size \
	beside earlier release handouts wheelhouse classroom lint format clean constraints
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s%s\n", $$1, $$2 }'

run: $(VENV)/.installed  ## Execute the notebook; leave it and an HTML copy in output/
	@$(BIN)/python -m helpers.workshop.notebooks $(NOTEBOOK) --output $(OUTPUT)

# No news, no check for updates, no list of extensions: JupyterLab would fetch each of them.
lab: $(VENV)/.installed  ## Open the notebook in JupyterLab
	@$(BIN)/python -m jupyterlab $(NOTEBOOK) --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
		--LabApp.extension_manager=readonly $(LAB_OPTIONS)

# A process for each core, see tests/workers.py; `make test WORKERS=0` is one for all.
IN_PROCESSES := --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

test: lint  ## Run all tests and notebooks
	@$(BIN)/python -m pytest $(IN_PROCESSES)

# A cluster's nodes do not start in time beside other tests.
INTEGRATION := integration genai clients batch_robustness
integration: $(VENV)/.checks genai clients cluster  ## Install anew and do what the README says; ask other runtimes
	@status=0; \
	$(BIN)/python -m pytest --integration tests/test_cluster.py || status=1; \
	$(BIN)/python -m pytest --integration $(IN_PROCESSES) $(INTEGRATION:%=tests/test_%.py) || status=1; \
	exit $$status

genai: $(VENV)-genai/.installed  ## Install OpenVINO GenAI into an environment of its own
peers: $(VENV)-genai/.installed $(VENV)-llama/.installed  ## Install GenAI and llama.cpp, to be measured beside us
clients: $(VENV)-clients/.installed  ## Install other programs' clients into one of their own
cluster: $(VENV)-cluster/.installed  ## Install Ray into one that has the notebooks' packages besides
$(VENV)-%/.installed: requirements-%.txt
	@$(FIND_PYTHON); "$$python" -m venv $(VENV)-$*
	$(VENV)-$*/$(notdir $(BIN))/python $(PIP_INSTALL) -r $<
	@touch $@

# Ray's actors answer with the notebooks' packages: they are lent, not installed twice.
PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))
$(VENV)-cluster/.installed: requirements-cluster.txt $(VENV)/.installed
	@$(BIN)/python -m venv $(VENV)-cluster
	@echo "import site; site.addsitedir(r'$$($(BIN)/python -c "$(PACKAGES)")')" > \
		"$$($(VENV)-cluster/$(notdir $(BIN))/python -c "$(PACKAGES)")/notebooks.pth"
	$(VENV)-cluster/$(notdir $(BIN))/python $(PIP_INSTALL) \
		-r requirements-cluster.txt -c constraints.txt
	@touch $@

# llama.cpp has no build of its own for each processor, so it is compiled here, with a C++ compiler.
$(VENV)-llama/.installed: requirements-peers.txt $(VENV)/.installed
	@$(FIND_PYTHON); "$$python" -m venv $(VENV)-llama
	CMAKE_ARGS="$$($(BIN)/python -m helpers.measure.peers.llama_build)" \
		$(VENV)-llama/$(notdir $(BIN))/python $(PIP_INSTALL) \
		--no-binary llama-cpp-python -r requirements-peers.txt
	@touch $@

shuffled: $(VENV)/.checks  ## Run the quick tests in a random order; print what they cover
	@$(BIN)/python -m pytest -m "not slow and not notebook" --random-order-bucket=global \
		--random-order --cov=helpers --cov-report=term:skip-covered

TORTURE := $(addprefix tests/test_,kills.py untrusted.py conversion.py recipes.py \
	images_and_prompts.py tracing_and_stateful.py picture_memory.py manifests.py interrupts.py \
	squares.py bundled_accuracy.py notebook_paths.py batch.py batch_robustness.py)
torture: $(VENV)/.checks  ## Break things on purpose, many times, and run what is long
	@$(BIN)/python -m pytest --torture $(TORTURE)

soak: $(VENV)/.checks  ## Use the chat page and the server for three minutes, four people at once
	@$(BIN)/python -m pytest --soak tests/test_soak.py tests/test_server_soak.py

browser: $(VENV)/.checks  ## Use the chat page and every notebook in a real browser
	@$(BIN)/python -m pytest --browser tests/test_browser.py tests/test_lab.py

screenshots: $(VENV)/.checks  ## Take the README's pictures of them anew
	@$(BIN)/python -m pytest --screenshots tests/test_browser.py tests/test_lab.py

full-size: $(VENV)/.installed  ## Measure MODEL at full size, with random weights; needs time and disk
	@mkdir -p notebooks/full-size $(OUTPUT)
	@$(BIN)/python -m helpers benchmark $(MODEL) --full-size --against pytorch \
		--precision $(PRECISION) --output $(OUTPUT)/$(MODEL).json
	@$(BIN)/python -m helpers.workshop.history $(OUTPUT)/$(MODEL).json
	@$(BIN)/python -m helpers.workshop.readme

beside: peers  ## Measure FOLDER, called as its original, beside other engines
	@mkdir -p $(OUTPUT)
	@$(BIN)/python -m helpers benchmark $(FOLDER) --against pytorch,genai,llama.cpp \
		--output $(OUTPUT)/peers.json
	@$(BIN)/python -m helpers.workshop.history $(OUTPUT)/peers.json
	@$(BIN)/python -m helpers.workshop.readme

earlier: $(VENV)/.installed  ## Measure MODEL's shapes beside the first release, as docs/speed-measured.md has it
	@$(BIN)/python -m helpers.workshop.earlier $(MODEL) $(OUTPUT)/earlier

release: $(VENV)/.installed  ## Build the archive of a release, with all notebooks executed
	@$(BIN)/python -m helpers.workshop.release $(if $(TAG),--tag $(TAG)) \
		--output $(OUTPUT)/release

handouts: $(VENV)/.installed  ## Write students' and teachers' copies of the notebooks
	@$(BIN)/python -m helpers.workshop.handouts --output $(OUTPUT)/handouts

wheelhouse: $(VENV)/.installed  ## Collect all packages, to install from without a network
	@if $(CPU_BUILD) && "$(BIN)/python" -c "$(ANSWERS)" 2>/dev/null; then \
		set -- --torch-index $(TORCH_INDEX); \
	fi; \
	$(BIN)/python -m helpers.workshop.wheelhouse --output $(OUTPUT)/wheelhouse "$$@"

classroom: $(VENV)/.installed  ## Measure the memory of USERS who execute a notebook at once
	@$(BIN)/python -m helpers.workshop.classroom $(NOTEBOOK) --users $(USERS) \
		--output notebooks/classroom.json
	@$(BIN)/python -m helpers.workshop.readme

lint: $(VENV)/.checks  ## Check style and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/zizmor --quiet --offline .github

# What most changes break: names and rooms, golden data, conversations, a notebook.
CHECK := rooms names readme requirements checkpoints tracing_and_stateful pipeline notebook_structure notebook_paths
check: lint  ## Check style, types, and what most changes break
	@$(BIN)/python -m pytest $(IN_PROCESSES) -m "not slow or check" tests/test_golden_*.py \
		$(CHECK:%=tests/test_%.py)

format: $(VENV)/.checks  ## Repair what the style check can repair
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

clean:  ## Remove the environment and everything that was made
	rm -rf $(VENV) $(VENV)-* $(OUTPUT) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

constraints:  ## Lock anew what requirements.txt and tests/requirements.txt pull in
	@$(FIND_PYTHON); "$$python" -m venv --clear $(VENV)-lock
	$(VENV)-lock/$(notdir $(BIN))/python -m pip install -r requirements.txt -r tests/requirements.txt
	@{ echo "# What requirements.txt and tests/requirements.txt pull in; made by: make constraints"; \
		echo "# A constraint installs nothing. What only some systems need is not locked."; \
		$(VENV)-lock/$(notdir $(BIN))/python -m pip freeze | sed 's/+.*//'; } > constraints.tmp
	@mv constraints.tmp constraints.txt && rm -rf $(VENV)-lock

# PyTorch's default build for Linux brings gigabytes for NVIDIA GPUs, which nothing here uses.
# `make TORCH=default` takes it all the same. The index has ten seconds to answer.
TORCH_INDEX := https://download.pytorch.org/whl/cpu
ANSWERS := import signal, urllib.request; signal.alarm(10); urllib.request.urlopen('$(TORCH_INDEX)/torch/')
CPU_BUILD = [ "$(TORCH)" = cpu ] && [ "$$(uname -s)" = Linux ] && [ -z "$(WHEELHOUSE)" ]
CPU_TORCH = if "$(BIN)/python" -c "import torch" 2>/dev/null; then \
		echo "PyTorch is there already."; \
	elif $(CPU_BUILD); then \
		if "$(BIN)/python" -c "$(ANSWERS)" 2>/dev/null; then \
			$(INSTALL) "$$(grep '^torch==' requirements.txt)" --index-url $(TORCH_INDEX); \
		else \
			echo "The index of PyTorch's CPU build does not answer, so its default build is installed."; \
		fi; \
	fi

# What `vlm` and the notebooks import is compiled once, also where variables forbid it later.
BYTECODE := import sys; sys.dont_write_bytecode = False; \
	import helpers.convert.conversion, helpers.run.pipeline, helpers.serve.server, \
	helpers.show.choices, helpers.show.plots, helpers.workshop.notebooks, ipykernel.kernelapp

# A stamp is written last, so an installation that was cut off is taken up again.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@$(FIND_PYTHON); "$$python" -m venv $(VENV)
	@$(CPU_TORCH)
	$(INSTALL) -r requirements.txt -c constraints.txt
	$(INSTALL) --no-deps -e .
	@$(BIN)/python -c "$(BYTECODE)"
	@touch $@

$(VENV)/.checks: tests/requirements.txt $(VENV)/.installed
	$(INSTALL) -r tests/requirements.txt -c constraints.txt
	@touch $@
