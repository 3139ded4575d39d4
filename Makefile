# `make help` explains every target. ARGS is handed on: make demo ARGS="seed=1", make test ARGS="-k returns".
PY := .venv/bin/python
STAMP := .venv/.setup-done
ARGS ?=
RUN ?= outputs/demo
SEEDS ?= 31,32,33,34,35
SETTINGS ?= all_outcomes,positive_only,forced_demonstrations,no_dropout,pickier,generous,more_demonstrations,longer_n_step,whole_episode
OPERATOR ?= labels_on_demonstrations,corrections,as_many_demonstrations
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-small study report bench test test-slow soak lint format lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo; echo '  PYTHON=/path/to/python3.12   the Python to set up with; otherwise one is looked for'
	@echo "  INSTALLER=pip                set up without uv"
	@echo "  ARGS='...'                   handed on: make demo ARGS='seed=1', make test ARGS='-k returns'"

setup: $(STAMP) ## Make .venv with everything installed; at once when nothing has changed

demo: setup ## Run the whole loop on the embedded task, 8 minutes on two cores; ends with a table and report.html
	$(PY) loop.py experiment=demo +iterations=1 $(ARGS)

demo-small: setup ## The same at reduced size: shows that everything works, not that the policy improves
	$(PY) loop.py experiment=demo_small +iterations=1 $(ARGS)

study: setup ## Repeat the runs behind docs/results.md and docs/experience.md: five experiments, five seeds; a night on two cores
	$(PY) loop.py experiment=two_burners +iterations=2 seed=51,52,53,54,55 $(ARGS)
	$(PY) loop.py experiment=bottles +iterations=1 seed=0,1,2,3,41 $(ARGS)
	$(PY) loop.py experiment=stove 'ablation=[$(OPERATOR)]' eval.episodes=200 +iterations=1 seed=121,122,123,124,125 $(ARGS)
	$(PY) loop.py experiment=study +iterations=1 seed=$(SEEDS) $(ARGS)
	$(PY) loop.py experiment=study 'ablation=[$(SETTINGS)]' +iterations=1 seed=$(SEEDS) $(ARGS)
	$(PY) loop.py experiment=study_three +iterations=1 seed=$(SEEDS) $(ARGS)
	$(PY) -m recap.study outputs/two_burners outputs/bottles outputs/stove outputs/study outputs/study_three docs

report: setup ## Build report.html of a run again: RUN=outputs/demo; of several, RUN='outputs/a outputs/b', side by side
	$(PY) -m recap.report $(RUN) $(ARGS)

bench: setup ## Measure ours against the peers: 20 minutes on two idle cores, then the GPU if there is one; ARGS=--quick to try it out
	CUDA_VISIBLE_DEVICES= $(PY) bench/cpu.py $(ARGS)
	$(if $(ARGS),,! $(PY) -c 'import torch; print(torch.cuda.is_available())' | grep -q True || $(PY) bench/full_size.py outputs/full_size seconds=500)

test: setup ## Fast tests, two at a time
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: setup ## End-to-end tests
	$(PY) -m pytest -m slow $(ARGS)

soak: setup ## A chain on a real SLURM under fifty random faults, ten minutes; RECAP_SEED=1 for other ones
	RECAP_FAULTS=50 $(PY) -m pytest -m slow tests/test_slurm_runs.py -k faults -s -o faulthandler_timeout=0 $(ARGS)

lint: setup ## Check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## Mend what lint finds, as far as that can be done by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: ## Pin the newest versions that setup.cfg allows in requirements.lock (needs uv)
	uv pip compile setup.cfg --all-extras --universal --python-version 3.12 --upgrade --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock $(ARGS)

clean: ## Remove .venv and all caches; never outputs/
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path './outputs/*' -prune -exec rm -rf {} +

# A .venv whose Python is gone (an upgrade, a removed pyenv version) is no finished setup.
ifneq ($(shell $(PY) -c 'print(1)' 2>/dev/null),1)
.PHONY: $(STAMP)
endif
$(STAMP): setup.cfg requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON='$(PYTHON)' INSTALLER='$(INSTALLER)' ./scripts/setup.sh
	@touch $@
