# Two commands for a fresh machine: `make demo` and `make test`. Each first installs everything it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CSRC   := $(shell find csrc -type f)

.PHONY: demo test coverage lint types docs release-check sanitize bench bench-gate compile-gates gpu-check gpu-large gpu-science clean

# Install torch first, in its pinned version, with the build tools, because the package is built without isolation.
$(READY): constraints.txt pyproject.toml setup.py CMakeLists.txt $(CSRC)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools pybind11 cmake ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/stochprune finetune --data digits --sparsities 0.9,0.95 --seeds 2 --out runs/demo

# One thread for each of the two workers: more threads than cores would wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --durations=10

# Measuring the coverage nearly doubles the time of the tests.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" --cov --cov-report=term --cov-fail-under=90

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Build the documentation site in build/site. A broken link, or a page that nobody can reach, fails.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# Build wheels and an sdist, and install each in a clean environment of every Python from 3.10 to 3.13 that is found here.
release-check: $(READY)
	.ci/release-check

# Test the C++ kernels against the backend contract under AddressSanitizer and UBSan, in a separate build. Leaks are not
# detected, because Python and torch keep memory until they end. libstdc++ is preloaded, because otherwise the sanitizer
# does not find the exceptions that torch throws.
SANITIZED := build/sanitize
CMAKE     := PATH="$(abspath $(BIN)):$$PATH" cmake
sanitize: $(READY)
	$(CMAKE) -S . -B $(SANITIZED) -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DSTOCHPRUNE_SANITIZE=ON \
	  -DSTOCHPRUNE_CUDA=OFF -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(CMAKE) --build $(SANITIZED) --parallel
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/python -m tests.with_extension $(SANITIZED)/_C*.so -q --capture=sys -m "not slow" \
	  -k "not triton and not cuda and not reference" $(SANITIZED_TESTS)
SANITIZED_TESTS := tests/test_native.py tests/native tests/backends \
  tests/test_mask_fuzz.py

# Run the benchmark suite: all contenders of a case in turns, in one process. Run it again to continue a run that was stopped.
# Then write its page and its file of the ledger.
bench: $(READY)
	$(BIN)/stochprune bench run
	$(BIN)/python -m bench.report "$$(ls -dt runs/bench-*/ | head -n 1)"

# Compare the speed of this clone with its merge base with main, or with BASE=COMMIT: both are built in build/gate, and their
# processes take turns on one thread. Fails if a ratio of ours to dense is more than 10 per cent larger, with its interval.
bench-gate: $(READY)
	$(BIN)/python -m bench.gate $(if $(BASE),--base $(BASE))

# Compile the Triton kernels with both supported versions of Triton, without a GPU, and check the gates: first of every
# kernel, then of everything that the GPU tests launch. The first run takes hours on two cores; .benchmarks keeps results.
OLD := .venv-triton36
$(OLD)/.ready: $(READY)
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet triton==3.6.0 'numpy<2.4'
	$(OLD)/bin/python -c "import sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'), 'main.pth').write_text('import site; site.addsitedir(\"$(CURDIR)/$(VENV)/lib/python' + sysconfig.get_python_version() + '/site-packages\")\n')"
	touch $@

compile-gates: $(READY) $(OLD)/.ready
	mkdir -p .benchmarks
	for python in $(BIN)/python $(OLD)/bin/python; do \
	  $$python -m bench.front_end && $$python -m tests.kernels.unsettled && $$python -m bench.compile_table --check || exit 1; \
	done
	for python in $(BIN)/python $(OLD)/bin/python; do \
	  rm -f .benchmarks/launches.pickle; \
	  $$python -O -m pytest --assert=plain -q -n 0 -p tests.recorder --record .benchmarks/launches.pickle tests/gpu || exit 1; \
	  $$python -m bench.recorded .benchmarks/launches.pickle || exit 1; \
	done

# Check, time and test on a machine with a GPU and its own torch and Triton; needs no network. See docs/gpu.md.
gpu-check:
	$(PYTHON) -m bench.gpu_check

# Mask fine-tuning of a randomly initialised 7-billion model on a GPU, 50 steps: memory, speed, and the plan's error.
gpu-large:
	$(PYTHON) -m bench.gpu.large

# Studies with ResNet-20 on the whole of CIFAR-10, eight minutes at a time: the same command continues them.
gpu-science:
	$(PYTHON) -m bench.gpu.science $(if $(DATA),--data-dir $(DATA))

clean:
	rm -rf $(VENV) $(OLD) build dist runs .benchmarks *.egg-info stochprune/*.so
