# make quickstart   trains on handwritten digits, two minutes, and shows samples
# make test         the test suite            make parity       against PyTorch implementations
# make test-newest  the same on the newest Python at hand
# make soak         runs that are killed, damaged and starved, nine minutes
# make pod          TPU_SETUP.md's launch commands, two hosts played by two processes
# make bench        what the parallel modes cost, on CPU devices; a Frechet distance against scipy's
# make bench-peers  training and sampling steps of diffusion models, ours and diffusers', on one CPU core
# make pages        MODELS.md, EQUATIONS.md, RESULTS.md
# make notebooks    runs the notebooks and stores what they show, four minutes

PYTHON ?= python3
EXTRAS ?= test
NEWEST ?= $(shell for p in python3.13 python3.12; do $$p -c "" 2>/dev/null && echo $$p && break; done)

.PHONY: quickstart test parity test-newest soak pod bench bench-peers pages notebooks clean

quickstart: .venv/ready
	.venv/bin/python -m experiments.quickstart

test: .venv/ready
	.venv/bin/ruff check -q . && .venv/bin/ruff format -q --check .
	.venv/bin/python -m pytest -n 2 --dist loadfile

parity: .venv-parity/ready
	.venv-parity/bin/python -m pytest -o addopts="" -q tests/parity

test-newest: .venv-newest/ready
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile

soak: .venv/ready
	.venv/bin/python -m pytest -o addopts="" -q -s tests/soak

pod: .venv/ready
	.venv/bin/python tests/pod.py

bench: .venv/ready
	.venv/bin/python -m benchmarks.modes
	.venv/bin/python -m benchmarks.frechet

bench-peers: .venv-parity/ready
	.venv-parity/bin/python -m benchmarks.diffusion

pages: .venv/ready
	.venv/bin/python -m jaxgen.pages

notebooks: .venv/ready
	.venv/bin/python tests/run_notebooks.py

.venv/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e ".[$(EXTRAS)]"
	touch $@

.venv-parity/ready: setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info[:2] == (3, 11), 'make parity PYTHON=python3.11'"
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install -q -e ".[test,parity]"
	touch $@

.venv-newest/ready: setup.cfg pyproject.toml
	@test -n "$(NEWEST)" || (echo "no Python 3.12 or 3.13 is here: make test-newest NEWEST=..."; exit 1)
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-parity .venv-newest
