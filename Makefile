# make demo | test | test-slow | test-all | peers | lint | bench | docs | pocket | pocket-ablation | clean
# Every target sets up .venv by itself; the first time takes a few minutes, later ones nothing.
# Needs only make and Python 3.11 or 3.12 (another one: make PYTHON=/path/to/python3.12 demo).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo paper test test-slow test-all peers lint bench docs pocket pocket-ablation clean

# The first interpreter that starts, is 3.11 or 3.12 and can make environments (a name on the
# path proves nothing: version managers put names there that start no interpreter).
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	if $$name -c '$(USABLE)' >/dev/null 2>&1; then echo $$name; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
# The stamp names the folder: a checkout that was copied or moved installs itself anew instead of
# running the code of the place it came from.
STAMP := $(VENV)/.installed-$(shell pwd | cksum | cut -d' ' -f1)
# Two test processes with one torch thread each keep two cores busy and no more.
JOBS ?= 2

help:
	@echo 'make demo       the whole path on the embedded pocket model: runs/demo/report.html'
	@echo 'make paper      the AHN paper on the pocket model, every table and figure: runs/paper/paper.html'
	@echo 'make test       the test suite but for tests marked slow; a part: PYTEST_ARGS=tests/tasks'
	@echo 'make test-slow  the tests marked slow'
	@echo 'make test-all   both'
	@echo 'make peers      the test mixins of the pinned transformers (fetched once), on our models'
	@echo 'make lint       ruff, mypy, import-linter'
	@echo 'make bench      speed and cache size of every variant on this machine'
	@echo 'make docs       these pages and the API reference as a site: site/index.html'
	@echo 'make pocket     trains the pocket model and its memories anew (two to three hours on one core)'
	@echo 'make pocket-ablation  trains the six memories of Table 4 anew (half an hour on one free core)'
	@echo 'make clean      removes .venv, caches and runs/demo'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { \
	  echo 'No usable Python: 3.11 or 3.12 with the venv module is needed' \
	    '(on Debian and Ubuntu: apt install python3-venv), or say make PYTHON=/path/to/python.' >&2; \
	  exit 1; }
	@'$(PYTHON)' -c '$(USABLE)' || { \
	  echo '$(PYTHON) will not do: Python 3.11 or 3.12 with the venv module is needed.' >&2; exit 1; }
	@echo 'Setting up $(VENV) with $(PYTHON) (once; a few minutes)'
	@$(BIN)/python -c '$(USABLE)' >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-deps kvpress
	@touch $@

demo: export HF_HUB_OFFLINE := 1
demo: $(STAMP)
	$(BIN)/run_eval pocket --config configs/eval/demo.yaml
	$(BIN)/run_eval report runs/demo -o runs/demo/report.html

# Two processes with one thread each keep two cores busy; what they run are other parts, so that they
# share no run folder. An interrupted run continues where it stopped. Tables go to runs/paper/*.txt. A
# trial: make paper PAPER_ARGS='--limit 1' (a folder's limit can be raised later).
PAPER_ARGS ?=
PAPER = $(BIN)/run_eval paper $$name --model pocket --output runs/paper
paper: export HF_HUB_OFFLINE := 1
paper: export OMP_NUM_THREADS := 1
paper: $(STAMP)
	mkdir -p runs/paper
	( for name in table2 table6 table8 figure4; do \
	    $(PAPER) --no-report $(PAPER_ARGS) >runs/paper/$$name.txt; done; \
	  name=figure5; $(PAPER) --ahn gdn,dn,mamba2 >runs/paper/$$name.txt ) & first=$$!; \
	( for name in table3 table5 figure7 table4; do \
	    $(PAPER) --no-report $(PAPER_ARGS) >runs/paper/$$name.txt; done; \
	  name=figure3; $(PAPER) >runs/paper/$$name.txt ) & second=$$!; \
	trap 'kill $$first $$second' INT TERM; \
	code=0; wait $$first || code=1; wait $$second || code=1; exit $$code
	$(BIN)/run_eval paper report runs/paper -o runs/paper/paper.html

test: MARKED := -m 'not slow'
test-slow: MARKED := -m slow
test test-slow test-all: export OMP_NUM_THREADS := 1
test test-slow test-all: export HF_HUB_OFFLINE := 1
# Compiled files are kept whatever the environment says: many tests start processes that import them.
test test-slow test-all: export PYTHONDONTWRITEBYTECODE :=
test test-slow test-all: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(MARKED) $(PYTEST_ARGS)

# transformers' own tests of a model, from its source distribution, kept in .cache/peers; those of
# generate are not in it: make peers PEERS_CHECKOUT=/path/to/transformers adds them (a checkout of
# its repository, of the same version). One class: make peers PYTEST_ARGS='-k Qwen2Window'.
peers: export OMP_NUM_THREADS := 1
peers: export HF_HUB_OFFLINE := 1
peers: export PEERS_CHECKOUT := $(PEERS_CHECKOUT)
peers: $(STAMP)
	$(BIN)/python -m tests.peers.source
	$(BIN)/python -m pytest -q -rf tests/peers/peers.py $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: export HF_HUB_OFFLINE := 1
bench: $(STAMP)
	$(BIN)/python -m ahn.commands.bench
	$(BIN)/python tests/bench/recurrence.py

# A page with a warning is an error: a broken link, a name that is not there.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP)
	$(BIN)/python -m mkdocs build --quiet --strict
	@echo 'site/index.html'

# Data, base model in three phases, memories, and their place in the package; an interrupted run
# continues where it stopped, and finished parts are not trained again.
POCKET := ahn/assets/pocket
MEMORIES := gdn dn mamba2 gdn-seed1 dn-seed1 mamba2-seed1
pocket: export HF_HUB_OFFLINE := 1
pocket: $(STAMP)
	test -f runs/pocket/data/student-long.jsonl || $(BIN)/run_eval pocket-data
	for part in teacher-a teacher-b teacher-c $(MEMORIES); do \
	  folder=runs/pocket/$$part; \
	  test $$part != teacher-c || folder=runs/pocket/teacher; \
	  test -f $$folder/training.json || $(BIN)/ahn train configs/train/pocket-$$part.yaml; \
	done
	mkdir -p $(POCKET)/training
	cp runs/pocket/teacher/*.json runs/pocket/teacher/*.safetensors $(POCKET)
	cp runs/pocket/data/tokenizer/*.json $(POCKET)
	for part in teacher-a teacher-b teacher; do for file in runs/pocket/$$part/{training.json,loss.*}; do \
	  cp $$file $(POCKET)/training/$$part-$$(basename $$file); done; done
	rm $(POCKET)/training.json
	for part in $(MEMORIES); do \
	  mkdir -p $(POCKET)/$$part; \
	  cp runs/pocket/$$part/{config.json,model.safetensors,training.json,loss.*,README.md} \
	    $(POCKET)/$$part; \
	done
	chmod 644 $(POCKET)/*.safetensors $(POCKET)/*/*.safetensors

# Table 4 of the AHN paper in miniature: three recipes, two seeds each, on the embedded base model.
ABLATIONS := kl-random ce-random kl-fixed1024
pocket-ablation: export HF_HUB_OFFLINE := 1
pocket-ablation: $(STAMP)
	test -f runs/pocket/data/student.jsonl || $(BIN)/run_eval pocket-data
	for row in $(ABLATIONS); do for recipe in $$row $$row-seed1; do \
	  part=ablation/$$row-seed$$(test $$recipe = $$row && echo 0 || echo 1); \
	  test -f runs/pocket/$$part/training.json || \
	    $(BIN)/ahn train configs/train/pocket-ablation-$$recipe.yaml; \
	  mkdir -p $(POCKET)/$$part; \
	  cp runs/pocket/$$part/{config.json,model.safetensors,training.json,loss.*,README.md} \
	    $(POCKET)/$$part; \
	done; done
	chmod 644 $(POCKET)/ablation/*/*.safetensors

clean:
	rm -rf $(VENV) build dist site *.egg-info runs/demo
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
