# `make demo` and `make test` set up all they need in $(VENV): nothing but Python and a package registry is assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check check-neon format sanitize sanitize-address sanitize-thread clean

demo: $(VENV)/.installed
	$(BIN)/hybrid-retrieval demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The kernels and the index reader under a sanitizer: SANITIZE=address (with undefined) runs the tests in an environment of
# its own; SANITIZE=thread runs the kernels from many threads in a program of their own, as Python itself is full of benign
# races. Addresses are not randomised there: older thread sanitizers cannot place their memory otherwise.
SANITIZE ?= address
sanitize: sanitize-$(SANITIZE)

sanitize-address:
	$(PYTHON) -m venv .venv-sanitize
	.venv-sanitize/bin/pip --disable-pip-version-check install -q pytest hypothesis
	.venv-sanitize/bin/pip --disable-pip-version-check install -q -e . \
	  -C cmake.define.HR_SANITIZE=address,undefined -C install.strip=false
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONMALLOC=malloc .venv-sanitize/bin/python -m pytest tests/kernels tests/faults/test_fuzz.py tests/search

NATIVE := hybrid_retrieval/kernels/native
TSAN := $(CXX) -std=c++17 -O1 -g -fsanitize=thread -fopenmp-simd -Wno-psabi
X86 := $(filter x86_64 amd64,$(shell uname -m))
VNNI := -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
TILES := $(VNNI) -mamx-tile -mamx-int8
# Whether compiler, assembler and system know tiles.
KNOWS_TILES = $(if $(X86),$(shell test "$$(uname)" = Linux && \
  printf '\043include <immintrin.h>\nint main() { _tile_dpbssd(0, 1, 2); }\n' | \
  $(CXX) $(TILES) -x c++ - -o /dev/null 2>/dev/null && echo yes))
sanitize-thread:
	$(eval AMX := $(KNOWS_TILES))
	@mkdir -p build/thread
	$(TSAN) -DHR_VARIANT=portable -c $(NATIVE)/lookup.cpp -o build/thread/portable.o
	$(if $(X86),$(TSAN) -DHR_VARIANT=avx2 -mavx2 -mfma -c $(NATIVE)/lookup.cpp -o build/thread/avx2.o)
	$(if $(X86),$(TSAN) -DHR_VARIANT=avx512vnni $(VNNI) -c $(NATIVE)/estimates.cpp -o build/thread/avx512vnni.o)
	$(if $(AMX),$(TSAN) -DHR_VARIANT=amx $(TILES) -c $(NATIVE)/digits.cpp -o build/thread/amx-digits.o)
	$(if $(AMX),$(TSAN) -DHR_VARIANT=amx $(TILES) -c $(NATIVE)/estimates.cpp -o build/thread/amx-estimates.o)
	$(TSAN) $(if $(X86),-DHR_X86) $(if $(AMX),-DHR_AMX) tests/kernels/threads.cpp $(NATIVE)/tables.cpp \
	  build/thread/portable.o $(if $(X86),build/thread/avx2.o build/thread/avx512vnni.o) $(if $(AMX),build/thread/amx-digits.o build/thread/amx-estimates.o) -pthread -o build/thread/threads
	TSAN_OPTIONS=halt_on_error=1 setarch -R build/thread/threads

# The NEON kernels, compiled for aarch64, against what the NumPy reference records and against the portable kernels. Needs,
# on another processor, a cross compiler and qemu's emulation of programs (Debian: g++-aarch64-linux-gnu, qemu-user); on
# aarch64 itself nothing but $(CXX).
ARM64 := $(filter aarch64 arm64,$(shell uname -m))
ARM64_CXX ?= $(if $(ARM64),$(CXX),aarch64-linux-gnu-g++)
ARM64_RUN ?= $(if $(ARM64),,qemu-aarch64)
NEON := $(ARM64_CXX) -std=c++17 -O3 -fopenmp-simd -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi -DHR_ARM64
check-neon: $(VENV)/.installed
	@for tool in $(ARM64_CXX) $(ARM64_RUN); do command -v "$$tool" >/dev/null || { \
	  echo "check-neon needs $(ARM64_CXX) (set ARM64_CXX)$(if $(ARM64_RUN), and $(ARM64_RUN) (set ARM64_RUN)); $$tool is not here." \
	    "On Debian: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 2; }; done
	@mkdir -p build/neon
	$(BIN)/python -m tests.kernels.record build/neon/cases
	for source in transformer maxsim lookup; do \
	  $(NEON) -DHR_VARIANT=portable -c $(NATIVE)/$$source.cpp -o build/neon/$$source-portable.o && \
	  $(NEON) -DHR_VARIANT=neon -DHR_NEON -c $(NATIVE)/$$source.cpp -o build/neon/$$source-neon.o || exit 1; done
	$(NEON) -ffp-contract=off -c $(NATIVE)/tables.cpp -o build/neon/tables.o
	$(NEON) tests/kernels/variants.cpp build/neon/*.o $(if $(ARM64),,-static) -o build/neon/variants
	$(ARM64_RUN) build/neon/variants build/neon/cases

# pip comes last, so an environment that was only half made (on Debian: without python3-venv) is made to the end.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# What the kernels are compiled from: an installation from before they changed would still run the old ones.
COMPILED := CMakeLists.txt $(wildcard hybrid_retrieval/kernels/native/*)

# What the demonstration needs: the plain install and the measures, no torch. `pip install -q` prints nothing but warnings and errors.
$(VENV)/.installed: pyproject.toml $(COMPILED) | $(VENV)/bin/pip
	@echo "Installing hybrid-retrieval into $(VENV) ..."
	$(PIP) install -q -e ".[evaluate]"
	@touch $@

# torch first and alone: left to a dependency's range, a resolver may take a build of several gigabytes.
$(VENV)/.installed-dev: pyproject.toml constraints-dev.txt $(COMPILED) | $(VENV)/bin/pip
	@echo "Installing hybrid-retrieval with its development tools into $(VENV) ..."
	$(PIP) install -q -c constraints-dev.txt torch
	$(PIP) install -q -c constraints-dev.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .venv-sanitize build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
