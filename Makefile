# Needs Python 3.11 or later, make and pip; everything else goes into .venv.
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint format bench clean

VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# Tests that load what may not stand beside TensorFlow in one process: OpenGL, PyTorch.
ALONE := tests/unit/test_rendering.py tests/parity/test_simple_baseline_torch.py tests/unit/test_lifting_motion_agformer.py tests/unit/test_detection_torch.py tests/parity/test_detection_onnx.py tests/unit/test_torch2flax_cli.py tests/unit/test_benchmarks_detection.py
TOGETHER := $(addprefix --ignore=,$(ALONE))
COMPARE := $(addprefix --compare ,$(wildcard benchmarks/baseline.json))

help:
	@echo "make demo       fetch the spine model, solve a synthetic clip, write motion, plot and viewer"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff rewrite the code's layout"
	@echo "make bench      benchmarks/results.json, held against benchmarks/baseline.json"
	@echo "make venv       only install into $(VENV)"
	@echo "make clean      remove $(VENV) and what the other targets wrote"

venv: $(STAMP)

# The first interpreter that is new enough and can make environments; PYTHON=... overrides the search.
$(STAMP): pyproject.toml constraints.txt
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python); do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: no Python 3.11 or later with venv and ensurepip was found$(if $(PYTHON), as $(PYTHON)); name one with make PYTHON=/path/to/python3.11" >&2; \
	  exit 2; \
	fi; \
	echo "installing into $(VENV) with $$found"; \
	"$$found" -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(RUN)/simspine demo --out demo_output

test: $(STAMP)
	@status=0; \
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0 -m "not slow" $(TOGETHER) \
	  || status=1; \
	for file in $(ALONE); do \
	  $(RUN)/python -m pytest $$file -m "not slow" || [ $$? = 5 ] || status=1; \
	done; \
	exit $$status  # 5: none of them can run here

test-slow: $(STAMP)
	$(RUN)/python -m pytest -m slow $(TOGETHER) || [ $$? = 5 ]  # 5: there are none

lint: $(STAMP)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/pyright

format: $(STAMP)
	$(RUN)/ruff format

bench: $(STAMP)
	$(RUN)/python -m benchmarks kinematics pipeline dataset lifting detection fitting --json benchmarks/results.json $(COMPARE)

clean:
	rm -rf $(VENV) demo_output build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
