# make demo           set up once, then train, evaluate and show both tasks on generated data
# make test           set up once, then the test suite
# make lint           format, lint, the order of imports and types, as CI checks them
# make test-slow      the checks that take longer: overfitting, interrupted training, the README's commands
# make test-upstream  the same suite beside the frozen upstream OpenMMLab packages (Python 3.10 or 3.11)
# make benchmark      speed and memory beside other implementations; writes docs/benchmark
# make gpu            checks the package on the GPU and times it; writes docs/benchmark/gpu.md
# make census         swaps the backbone of every config of mmdet and mmseg; writes docs/census.md
# make census-export  exports a model of every family of mmdet and mmseg; writes docs/census-export.md
# make ladder         trains the roadmap from ResNet-50 to ConvNeXt under a segmentor; writes docs/ladder.md
# make docs           the site, from docs/ and the docstrings; writes build/docs/html (Python 3.11 or newer)
# make commands       what the commands say of themselves; writes docs/commands.md
# make tutorial       follows docs/tutorial.md in build/tutorial, where CamVid lies; writes its output into the page
# make pins           writes the versions of all packages anew, from tools/env/*.in; needs uv
# make storm          kills trainings and breaks inputs, at random; writes docs/reliability.md
# make demo-seeds     the demo with three seeds; writes docs/demo.md
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: benchmark census census-export commands demo demo-seeds docs gpu ladder lint pins storm test test-slow test-upstream tutorial

demo: .venv/.ready
	$(RUN) tools/demo.py

demo-seeds: .venv/.ready
	$(RUN) tools/demo.py --seeds 0 1 2 --report docs/demo.md

benchmark: .venv/.ready
	$(RUN) tools/benchmark.py --out docs/benchmark

gpu: .venv/.ready
	$(RUN) -m convnext_dense.evaluation.gpu_check --out docs/benchmark

census: .venv/.ready
	$(RUN) tools/census.py

census-export: .venv/.ready
	$(RUN) tools/census.py --export

ladder: .venv/.ready
	$(RUN) -m convnext_dense.evaluation.ladder

storm: .venv/.ready
	PYTHONPATH=tests $(RUN) -m storm

commands: .venv/.ready
	$(RUN) -m tools.site.commands

tutorial: .venv/.ready
	$(RUN) -m tools.site.tutorial build/tutorial

docs: .venv-docs/.ready
	rm -rf build/docs
	.venv-docs/bin/python tools/site/gather.py build/docs/source
	.venv-docs/bin/python -m sphinx --fail-on-warning --quiet -c tools/site -d build/docs/doctrees \
	  build/docs/source build/docs/html
	@echo 'open build/docs/html/index.html'

test: .venv/.ready
	$(RUN) -m pytest

lint: .venv/.ready
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	.venv/bin/lint-imports --no-logo
	$(RUN) -m mypy

test-slow: .venv/.ready
	$(RUN) -m pytest -m slow

test-upstream: .venv-upstream/.ready
	.venv-upstream/bin/python -m pytest

SETUP = $(wildcard tools/env/*.py) setup.py pyproject.toml

.venv/.ready: $(SETUP) tools/env/onedl.txt
	$(PYTHON) -m tools.env.make_env .venv tools/env/onedl.txt

.venv-upstream/.ready: $(SETUP) tools/env/upstream.txt
	$(PYTHON) -m tools.env.make_env .venv-upstream tools/env/upstream.txt --max-python 3.11

.venv-docs/.ready: tools/site/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --no-deps -r tools/site/requirements.txt
	touch $@

# The .in file is a build constraint as well: mmcv 2.1 needs its setuptools to tell what it requires.
pins:
	for family in onedl upstream; do \
	  uv pip compile --universal --python-version 3.10 --no-annotate --no-emit-package pip --upgrade --quiet \
	    --build-constraints tools/env/$$family.in --custom-compile-command 'make pins' \
	    tools/env/$$family.in -o tools/env/$$family.txt || exit 1; \
	done
	uv pip compile --universal --python-version 3.11 --no-annotate --upgrade --quiet \
	  --custom-compile-command 'make pins' tools/site/requirements.in -o tools/site/requirements.txt
