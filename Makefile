# Every target sets up what it needs; a machine with python3 (and its venv module) and a C compiler
# will do. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# An environment with the oldest Numba.
OLDEST ?= .venv-oldest-numba
BENCH_JSON ?= bench/results/latest.json
# `make bench-compare` fails where a minimum time has grown by more than this.
SLOWDOWN ?= 25%

# For the C library on ARM, where these are installed.
CROSS_CC ?= aarch64-linux-gnu-gcc
EMULATOR ?= qemu-aarch64

CSRC := $(wildcard csrc/*.[ch] csrc/core/*.h csrc/python/*.c csrc/targets/*.c csrc/build_ffi.py)
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: help demo generate test test-oldest-numba test-native bench bench-compare accuracy lint lint-c clean

help:                ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY)       ## fit small networks to real data on every backend
	$(BIN)/fastbp demo

generate: $(READY)   ## what follows from tables and formulas: C, native tests, lists of names
	for tool in constants formulas naive lists; do $(BIN)/python tools/$$tool.py || exit 1; done
	$(BIN)/python setup.py -q build_ext --inplace

test: $(READY)       ## the full test suite, on all cores
	$(BIN)/pytest -n auto

# NumPy 2.0 is the newest that it takes. What builds C is not needed for these tests.
test-oldest-numba:   ## the Numba backend with the oldest Numba that is admitted
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    'numba==0.60.*' 'numpy==2.0.*' 'scipy>=1.13' cffi rich click safetensors \
	    pytest pytest-xdist hypothesis mpmath
	FASTBP_BACKEND=numba PYTHONPATH=. $(OLDEST)/bin/python -m pytest -q -n auto -p no:cacheprovider \
	    tests/backends/test_kernels.py tests/jitted tests/maths/test_scalars.py tests/maths/test_user_functions.py

test-native:         ## the C library by itself against naive loops, at every level and for ARM
	$(MAKE) -j 2 -f tests/native/Makefile
	for level in baseline avx2 avx512; do build/native/$(notdir $(CC))/driver $$level || exit 1; done
	@for tool in $(CROSS_CC) $(EMULATOR); do \
	    command -v $$tool >/dev/null || { echo "$$tool is not installed: ARM is skipped"; exit 0; }; \
	done && \
	$(MAKE) -j 2 -f tests/native/Makefile CC=$(CROSS_CC) LDFLAGS=-static && \
	$(EMULATOR) build/native/$(notdir $(CROSS_CC))/driver baseline

# A plugin of pytest may load NumPy before bench/conftest.py can limit its threads.
bench bench-compare: export OPENBLAS_NUM_THREADS = 1
bench bench-compare: export OMP_NUM_THREADS = 1
bench bench-compare: export MKL_NUM_THREADS = 1

bench: $(READY)      ## time the backends; saves JSON, prints table and plot
	mkdir -p $(dir $(BENCH_JSON))
	$(BIN)/pytest bench -q --benchmark-quiet --benchmark-json=$(BENCH_JSON)
	$(BIN)/python bench report $(BENCH_JSON)

bench-compare: $(READY)  ## time again and fail past SLOWDOWN against the saved run
	$(BIN)/python bench compare $(BENCH_JSON) --slowdown=$(SLOWDOWN)

accuracy: $(READY)   ## measure the activations against mpmath; writes docs/accuracy.md
	$(BIN)/python tools/accuracy.py

lint: $(READY)       ## ruff, mypy, and that imports run downward
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@! grep -rnE '^ *(import|from) fastbp' fastbp --include='*.py' || \
	    { echo "inside the package modules import modules, relatively"; exit 1; }

PYTHON_HEADERS := import numpy, sysconfig; \
    print("-isystem", numpy.get_include(), "-isystem", sysconfig.get_path("include"))

lint-c:              ## our C under every warning, with gcc and clang
	@headers=$$($(BIN)/python -c '$(PYTHON_HEADERS)') && fastcall=csrc/python/fastcall.c || \
	    echo "$(BIN)/python has no NumPy: csrc/python is skipped"; \
	for cc in gcc clang; do \
	    command -v $$cc >/dev/null || { echo "$$cc is not installed: skipped"; continue; }; \
	    echo "$$cc -Wall -Wextra -Wconversion -Werror"; \
	    printf '%s\n' csrc/*.c csrc/targets/*.c tests/native/driver.c $$fastcall | \
	        xargs -P 2 -n 1 $$cc -std=gnu11 -O2 -Wall -Wextra -Wconversion -Werror -Icsrc $$headers \
	        -DPy_LIMITED_API=0x030B0000 -c -o /dev/null || exit 1; \
	done

clean:               ## remove what the targets above made
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .*_cache .hypothesis .benchmarks
	rm -f fastbp/backends/_c.*.so fastbp/common/_fastcall.*.so fastbp/backends/_c_build_failure.txt
	find fastbp tests bench -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.py $(CSRC)
	@echo "Setting up $(VENV); the first time takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
