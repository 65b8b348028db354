# `make report`, `make test`, `make lab`, `make book`. Each sets up everything it needs in .venv, once.
PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin
BOOK   := notebooks/book/_build

.PHONY: report test lab book clean
.DELETE_ON_ERROR:

report: $(VENV)/installed
	$(RUN)/proofs-check

test: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Sources of notebooks open as notebooks; the setting that says so stays in .venv.
lab: export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/etc/jupyter-settings
lab: $(VENV)/installed-notebooks
	@$(RUN)/jupytext-config set-default-viewer python >/dev/null
	$(RUN)/jupyter lab notebooks/00_start_here.py

book: $(VENV)/installed-book
	@mkdir -p $(BOOK)
	$(RUN)/proofs-check --json $(BOOK)/report.json --html $(BOOK)/report.html
	$(RUN)/python notebooks/book/build.py --report $(BOOK)/report.json

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not here; name a Python of at least 3.11: make PYTHON=python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are written last, so that an interrupted installation is done again.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once; torch is large) ..."
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/installed
	@echo "Installing the development tools into $(VENV) (once) ..."
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/installed-notebooks: pyproject.toml | $(VENV)/installed
	@echo "Installing Jupyter into $(VENV) (once) ..."
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[notebooks]'
	@touch $@

$(VENV)/installed-book: pyproject.toml | $(VENV)/installed
	@echo "Installing what builds the book into $(VENV) (once) ..."
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[book]'
	@touch $@

clean:
	rm -rf $(VENV) $(BOOK) proofs-report proofs-report.html
