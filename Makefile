# Two commands: `make report` and `make test`. Each sets up everything it needs in .venv, once.
PYTHON ?= python3.11
VENV   := .venv
RUN    := $(VENV)/bin

.PHONY: report test clean
.DELETE_ON_ERROR:

report: $(VENV)/installed
	$(RUN)/proofs-check

test: $(VENV)/installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest

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

clean:
	rm -rf $(VENV) proofs-report proofs-report.html
