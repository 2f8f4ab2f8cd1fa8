# `make demo` and `make test` do everything, the environment and Horovod included. `make help` lists the rest.
# Variables, with what they are when not given (make demo STRATEGY=multiworker WORKERS=3):
STRATEGY ?= horovod
WORKERS ?= 2
DEMO_DIR ?= demo
# A folder made by kerass2.prepare, or synthetic; empty: the sample.
DATA ?=
# What the demo sharpens at the end.
INPUT ?= $(if $(filter synthetic,$(DATA)),synthetic,sample)
# More options for kerass2.fit in the demo, for pytest in the tests.
FIT_OPTIONS ?=
PYTEST_OPTIONS ?=
# Processes that test side by side, a file each.
JOBS ?= 2
VENV ?= .venv
# Two more, for tests alone: JAX and PyTorch beside the locked TensorFlow; and the newest of everything, which Horovod
# and tensorflow-io do not go with.
BACKENDS ?= .venv-backends
NEWEST ?= .venv-newest
# cpu or gpu, with what else setup.cfg offers.
EXTRAS ?= cpu,io,dev,docs
# A Python 3.11; empty: looked for.
PYTHON ?=
# More variables for Horovod's build, such as HOROVOD_GPU_OPERATIONS=NCCL.
HOROVOD_OPTIONS ?=
# Built Horovod wheels and the sample. The same folder as the commands'.
KERASS2_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kerass2

.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-backends test-newest test-cluster test-docs docs lint types bench \
	bench-pipeline bench-short bench-step clean clean-all

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
LOCKED := $(PIP) install -c constraints.txt
# Of an environment of another name.
install = $(1)/bin/python -m pip --disable-pip-version-check -qq install
editable = --no-build-isolation --config-settings editable_mode=compat -e
PYTHONS := $(or $(PYTHON),python3.11 python3 python /usr/bin/python3.11 /usr/local/bin/python3.11)
DATA_OPTION := $(if $(DATA),--data $(DATA))
WORKERS_OPTION := $(if $(filter single,$(STRATEGY)),,--workers $(WORKERS))

help:
	@echo "make setup       $(VENV) from constraints.txt, with Horovod"
	@echo "make demo        train on $(WORKERS) ranks ($(STRATEGY)), evaluate, predict, report, into $(DEMO_DIR)/"
	@echo "make test        the tests, without those marked slow, gpu, cluster, docs or backends"
	@echo "make test-slow   the tests marked slow"
	@echo "make test-backends  the tests marked backends, in $(BACKENDS): JAX, PyTorch, ONNX"
	@echo "make test-newest the tests of what uses Keras, in $(NEWEST): the newest of all, without Horovod"
	@echo "make test-cluster  the tests marked cluster: a Slurm, two hosts (as root), long runs of ranks"
	@echo "make test-docs   the commands of README and documentation, as they stand"
	@echo "make docs        the documentation site, into docs/_build/html"
	@echo "make lint types  ruff; mypy"
	@echo "make bench       every benchmark; make bench-step, make bench-pipeline one alone"
	@echo "make bench-short ratios of minutes against those that are kept; fails where one has fallen"
	@echo "make clean       remove what builds, tools and tests left; clean-all $(VENV) and $(DEMO_DIR)/ too"

# --- environment ------------------------------------------------------------------------------------------
# Three stamps: the empty environment, the packages, Horovod. Each is made again only when what it is made
# from changes; a second run does nothing.

# Horovod's wheel depends on more than its version, and pip's cache knows the version only: a wheel built
# before MPI was installed would come back without MPI. So wheels are kept by configuration.
HOROVOD := $(shell sed -n 's/^horovod==//p' constraints.txt)
TENSORFLOW := $(shell sed -n 's/^tensorflow-cpu==//p' constraints.txt)
MPI := $(shell command -v mpicc 2>/dev/null)
checksum = $(shell { $(1); } 2>/dev/null | cksum | cut -d' ' -f1)
CONFIGURATION := horovod-$(HOROVOD)-tensorflow-$(TENSORFLOW)-py311-$(shell uname -m)-$(shell \
	getconf GNU_LIBC_VERSION | tr -d ' ')$(if $(MPI),-mpi-$(call checksum,mpicc -show; mpirun --version))$(if \
	$(HOROVOD_OPTIONS),-$(call checksum,echo '$(HOROVOD_OPTIONS)'))
WHEELS := $(KERASS2_CACHE)/horovod/$(CONFIGURATION)

CREATED := $(VENV)/.created
PACKAGES := $(VENV)/.packages
BUILT := $(VENV)/.$(CONFIGURATION)

have_wheel = ls "$(WHEELS)"/*.whl >/dev/null 2>&1
need_compiler = command -v $(CXX) >/dev/null 2>&1 && command -v $(CC) >/dev/null 2>&1 || { \
	echo "error: no C++ compiler ($(CC) and $(CXX)), which Horovod's build needs; on Debian: apt-get install g++" >&2; exit 1; }

setup: $(CREATED) $(PACKAGES) $(BUILT)

$(CREATED) $(BACKENDS)/.created $(NEWEST)/.created:
	@python=; for p in $(PYTHONS); do \
		if "$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then \
			python=$$p; \
			if "$$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then break; fi; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: no Python 3.11 (tried: $(PYTHONS)); on Debian: apt-get install python3.11-venv; or make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $$python lacks the venv module; on Debian: apt-get install python3.11-venv" >&2; exit 1; }; \
	[ "$@" != "$(CREATED)" ] || $(have_wheel) || { $(need_compiler); }; \
	echo "making $(@D) with $$python"; \
	rm -rf "$(@D)"; \
	"$$python" -m venv "$(@D)"
	@touch $@

$(PACKAGES): constraints.txt setup.cfg $(CREATED)
	@echo "installing the packages of constraints.txt (about 1 min, 2.3 GB on disk)"
	@$(LOCKED) setuptools wheel packaging cmake
	@$(LOCKED) $(editable) '.[$(EXTRAS)]'
	@touch $@

# PyTorch wants a newer setuptools than Horovod's build does.
$(BACKENDS)/.packages: constraints.txt setup.cfg $(BACKENDS)/.created
	@echo "installing TensorFlow, JAX, PyTorch and ONNX of constraints.txt into $(@D) (about 2 min, 3 GB on disk)"
	@sed 's/^setuptools==.*/setuptools==84.2.1/' constraints.txt >$(@D)/constraints.txt
	@$(call install,$(@D)) -c $(@D)/constraints.txt setuptools wheel
	@$(call install,$(@D)) -c $(@D)/constraints.txt $(editable) '.[cpu,dev,export,jax,torch]'
	@touch $@

# The extras cpu and export hold TensorFlow and ONNX back to what Horovod builds with: named without them here.
$(NEWEST)/.packages: constraints-newest.txt setup.cfg $(NEWEST)/.created
	@echo "installing the packages of constraints-newest.txt into $(@D) (about 2 min, 4 GB on disk)"
	@$(call install,$(@D)) -c constraints-newest.txt setuptools wheel
	@$(call install,$(@D)) -c constraints-newest.txt tensorflow-cpu tensorboard tf2onnx onnx onnxruntime \
		$(editable) '.[dev,jax,torch]'
	@touch $@

$(BUILT): | $(PACKAGES)
	@if ! $(have_wheel); then \
		$(need_compiler); \
		echo "building Horovod $(HOROVOD) with Gloo$(if $(MPI), and MPI,; no mpicc here: without MPI) (about 3 min on 2 cores, once on this machine)"; \
		mkdir -p "$(WHEELS)"; \
		folder=$$(mktemp -d "$(WHEELS)/build.XXXXXX"); \
		trap 'rm -rf "$$folder"' EXIT; trap 'exit 1' INT TERM; \
		env HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 $(if $(MPI),HOROVOD_WITH_MPI=1,HOROVOD_WITHOUT_MPI=1) \
			HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 CMAKE_POLICY_VERSION_MINIMUM=3.5 \
			MAKEFLAGS=-j$$(nproc) PATH="$(abspath $(VENV))/bin:$$PATH" $(HOROVOD_OPTIONS) \
			$(PIP) wheel --no-build-isolation --no-deps --no-cache-dir --no-binary horovod \
			-w "$$folder" horovod==$(HOROVOD) >"$$folder/log" 2>&1 \
			|| { tail -n 60 "$$folder/log" >&2; echo "error: Horovod's build failed (its last lines above)" >&2; exit 1; }; \
		mv "$$folder"/*.whl "$(WHEELS)/"; \
	fi
	@$(PIP) uninstall -y horovod
	@$(LOCKED) "$(WHEELS)"/*.whl
	@rm -f $(VENV)/.horovod-*
	@touch $@

# --- what it is for -----------------------------------------------------------------------------------------

demo: setup
	$(PY) -m kerass2.fit --strategy $(STRATEGY) $(WORKERS_OPTION) $(DATA_OPTION) --workdir $(DEMO_DIR) --overwrite $(FIT_OPTIONS)
	$(PY) -m kerass2.evaluate $(DEMO_DIR)
	$(PY) -m kerass2.predict $(DEMO_DIR) $(INPUT) -o $(DEMO_DIR)/prediction.tif --overwrite
	$(PY) -m kerass2.report $(DEMO_DIR)
	@echo "the page: file://$(abspath $(DEMO_DIR))/report.html"

test: setup
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not cluster and not docs and not backends" $(PYTEST_OPTIONS)

test-slow: setup
	$(PY) -m pytest -m "slow and not gpu and not cluster and not backends" $(PYTEST_OPTIONS)

test-backends: $(BACKENDS)/.packages
	$(BACKENDS)/bin/python -m pytest -m backends $(PYTEST_OPTIONS)

# What touches Keras, its backends or tf.data; the rest does not change with them. NumPy 2 warns of Keras 3.15's own
# __array__ when a model is saved: no warning of ours.
NEWEST_TESTS := $(foreach name,attention averaging backends blocks checkpoint config_command cropping evaluate export \
	fit_init label_losses layerwise losses metrics models networks normalization optimizers precision predict \
	registration resampling resnet schedules shipped step tiling train validation weights wide_resnet, \
	tests/kerass2/test_$(name).py) $(foreach name,batching cube_source tfrecord transforms, \
	tests/data_pipelines/test_$(name).py)

test-newest: $(NEWEST)/.packages
	$(NEWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m "not slow and not gpu and not horovod and not mpi" -W "ignore:__array__ implementation:DeprecationWarning" \
		$(PYTEST_OPTIONS) $(NEWEST_TESTS)

test-cluster: setup
	$(PY) -m pytest -m cluster $(PYTEST_OPTIONS) tests/cluster tests/strategies tests/kerass2

test-docs: setup
	$(PY) -m pytest -m docs $(PYTEST_OPTIONS) tests/test_readme.py tests/test_packaging.py tests/test_docs.py

docs: setup
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "the site: file://$(CURDIR)/docs/_build/html/index.html"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

bench: setup
	$(PY) -m benchmarks

bench-pipeline: setup
	$(PY) -m benchmarks pipeline

bench-short: setup
	$(PY) -m benchmarks short

bench-step: setup
	$(PY) -m benchmarks step

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(BACKENDS) $(NEWEST)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-all: clean
	rm -rf $(VENV) $(DEMO_DIR)
