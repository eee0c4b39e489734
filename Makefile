# Needs Python 3.10 or newer and make; everything else goes into .venv.
PYTHON ?= python3
# PyTorch for Linux on PyPI is the CUDA build (several GB). For the small one:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := .venv/bin
LENET := models/lenet5-mnist
# Half of the suite for each of two processes, so that what a file's tests share is made once; at the end one takes of the other.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# No package that is not the very file of the lock, and none that the lock does not name.
LOCKED := $(BIN)/pip install -q --require-hashes --no-deps
# What `make torture` runs: make torture PARTS="hostile --cases 1000" is a part of it.
PARTS ?=
# What `make test` and `make coverage` run; make test TESTS="tests/passes -m 'not slow'" is a part of it.
TESTS ?=

.PHONY: demo test lint coverage mutation lock lowest docs benchmarks torture clean

demo: .venv/ready
	@if $(BIN)/python -c "import tensorrt_rtx" 2>/dev/null; then \
	  $(BIN)/optimize $(LENET)/model.onnx --recipe $(LENET)/recipe.toml --out build/lenet5; \
	else \
	  echo "TensorRT-RTX has no package for this platform: the demo leaves its engine out"; \
	  $(BIN)/optimize $(LENET)/model.onnx --recipe $(LENET)/recipe.toml --out build/lenet5 --target onnx; \
	fi

test: .venv/ready lint
	$(PYTEST) --durations=10 $(TESTS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo $(BIN)/mypy; said=$$($(BIN)/mypy) || { echo "$$said"; exit 1; }; echo "$$said"; \
	  files=$$(find onnx_lathe optimizer passes runtime -name '*.py' | wc -l | tr -d ' '); \
	  case "$$said" in *" in $$files source files"*) ;; *) echo "mypy saw another number than $$files: see typings/"; exit 1;; esac

coverage: .venv/ready
	@mkdir -p build
	$(PYTEST) --cov --cov-report=term-missing $(TESTS)
	$(BIN)/python .ci/floors.py

mutation: .venv/ready
	$(BIN)/python benchmarks/mutation.py

docs: .venv/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Lathe needs Python 3.10 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/ready-docs: pyproject.toml .ci/docs.lock | .venv/bin/python
	$(LOCKED) -r .ci/docs.lock
	@touch $@

# PyTorch is the one package without a hash: .ci/lock says why. The lock has all that it needs but CUDA's libraries.
.venv/ready: pyproject.toml constraints.txt .ci/dev.lock | .venv/bin/python
	$(LOCKED) -r .ci/dev.lock
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

# The locks of .ci/ anew, after a change of pyproject.toml or constraints.txt.
lock: build/uv/bin/uv
	UV=build/uv/bin/uv .ci/lock

# The oldest versions that pyproject.toml allows, in an environment of their own, and a part of the suite.
lowest: build/uv/bin/uv
	UV=$(CURDIR)/build/uv/bin/uv TORCH_INDEX=$(TORCH_INDEX) .ci/lowest

build/uv/bin/uv: .ci/uv.lock
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install -q --require-hashes --no-deps -r .ci/uv.lock
	@touch $@

benchmarks: .venv/ready
	$(BIN)/python benchmarks/kmeans.py
	$(BIN)/python benchmarks/vgg16.py
	$(BIN)/python benchmarks/resnet20_int8.py
	$(BIN)/python benchmarks/deep_compression.py
	$(BIN)/python benchmarks/pack.py
	$(BIN)/python benchmarks/bridge_coverage.py
	$(BIN)/python benchmarks/checkpointing.py
	$(BIN)/python benchmarks/retrain.py

# Hours; a sample of each part is in `make test`.
torture: .venv/ready
	$(BIN)/python benchmarks/torture.py $(PARTS)

clean:
	rm -rf .venv build
