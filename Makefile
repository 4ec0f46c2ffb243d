# `make demo` and `make test` work on a fresh machine: each makes the environment it needs first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SITE_VENV ?= .venv-site
# CPU runs: fp32, no model hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test quality style bench gpu compiler chaos hostile soak docs site package clean

demo: $(VENV)/.demo  ## train, evaluate and query an embedder on this machine, in minutes
	$(BIN)/llamafactory-embed demo

test: $(VENV)/.dev  ## everything that needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $${TEST_WORKERS:-2} --dist loadscope --no-loadscope-reorder $(TEST_ARGS)

hostile: $(VENV)/.dev  ## files and requests of strangers, ever new ones, for an hour (HOSTILE_SECONDS=…)
	$(BIN)/python -m tests.hostile $${HOSTILE_SECONDS:-3600}

soak: $(VENV)/.dev  ## train, encode, mine and serve for an hour: is memory, are handles, threads and speed flat?
	$(BIN)/python -m tests.soak $(SOAK_ARGS)

quality: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev  ## mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## side-by-side runs; writes benchmarks/results and docs/benchmarks.md
	$(BIN)/python -m benchmarks

compiler: $(VENV)/.dev  ## torch_compile with the code generator in every stage and on two ranks; minutes
	RUN_COMPILER=1 $(BIN)/python -m pytest tests/model/test_compiled.py tests/train/test_torch_compile.py

chaos: $(VENV)/.dev  ## kill, or refuse to write, at every system call that writes; exit code 1 if anything is lost
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

# No environment is made: a machine with a GPU brings its own torch. `make gpu GPU_PYTHON=…` names another Python.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:  ## what only a GPU can show, in 8 minutes; writes benchmarks/results/gpu
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

docs: $(VENV)/.dev  ## write the generated pages of docs/
	$(BIN)/python -m benchmarks --only-docs
	$(BIN)/python -m tests.published.page
	$(BIN)/python -m tests.docs.generated

site: $(SITE_VENV)/.site  ## build the documentation site into site/; a broken link or anchor stops it
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/python -m mkdocs build

package: $(VENV)/.dev  ## build sdist and wheel, and look into them
	$(BIN)/python scripts/check_wheel.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[demo,dev,eval,deepspeed,ray,metrics,lm-eval]'
	touch $@

# The site needs mkdocs-material and nothing of this package, whose dependencies weigh gigabytes.
$(SITE_VENV)/.site: pyproject.toml
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet $$($(PYTHON) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf $(VENV) $(SITE_VENV) site dist build .pytest_cache .ruff_cache .mypy_cache
