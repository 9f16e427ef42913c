# make demo   a search on real images, on this machine, with no download and no account
# make demo-photos   a folder of pictures to clusters and a page of them; it downloads CIFAR-10, unless DATA= names
#             a Parquet file of it
# make test   all tests; make test-fast leaves the slow ones out, make test-long runs longer ones
# make package   wheel and source distribution in dist/; python tools/release.py VERSION makes a release
# make test-oldest, make test-newest   the fast tests with the oldest and the newest dependencies
# make docs   the site of all pages, in build/site, and the pages and pictures that are made from the code
# make lint   format, lint, types (of benchmarks too), import contracts, secrets, docstrings, dependencies
# Each sets up the environment in .venv first, where that is not done yet.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-photos test test-fast test-long test-oldest test-newest lint format docs package clean

demo: $(READY)
	$(BIN)/python -m conr_ray.tune --space search_spaces/digits.yaml

PHOTOS := data/photos

demo-photos: $(READY)
	$(BIN)/python examples/photo_folder.py $(PHOTOS) $(if $(DATA),--data $(DATA))
	name=photos-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/python -m conr_ray.train --preset photos --set data.path=$(PHOTOS) --set clustering.num_clusters=10 \
	    --set data.stored_size=128 --set views.size=128 --local --name $$name && \
	$(BIN)/python -m conr_ray.report runs/$$name

test: $(READY)
	$(BIN)/python -m tests.warm_kernels
	$(BIN)/pytest -q -m "not long" -n 2 --durations=30

test-fast: $(READY)
	$(BIN)/pytest -q -m "not slow" -n 2

test-long: $(READY)
	$(BIN)/pytest -q -m long

# The same tests as test-fast with the oldest, and the newest, versions of Python and of all that is
# needed; each in an environment of its own, of some 7 GB.
test-oldest test-newest: test-%: $(READY)
	for python in $(if $(filter oldest,$*),python3.11,python3.13 python3); do \
	    $$python -c '' 2>/dev/null && $$python -m venv .venv-$* && break; done
	$(if $(filter oldest,$*),$(BIN)/python tools/oldest.py,echo '# none') > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet --upgrade 'pip>=24'
	.venv-$*/bin/pip install --quiet --upgrade -c .venv-$*/constraints.txt -e '.[dev]'
	.venv-$*/bin/pytest -q -m "not slow" -n 2

package: $(READY)
	$(BIN)/python tools/build_package.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy conr_ray tools benchmarks/*.py
	$(BIN)/lint-imports
	$(BIN)/python tools/secret_scan.py
	$(BIN)/python -m tools.docstrings
	$(BIN)/python tools/dependency_audit.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m conr_ray.config_reference > docs/config.md
	$(BIN)/python -m tools.house > docs/figures/house.svg
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo build/site/index.html

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The first Python of 3.11 to 3.13; PYTHON=... chooses another. The pip that comes with Debian 12's needs a
# quarter of an hour and more to choose versions.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	    then echo "making $(VENV) with $$python; torch is large, this takes minutes"; \
	    $$python -m venv $(VENV); break; fi; done
	@test -x $(BIN)/python || { echo "Python 3.11, 3.12 or 3.13 is needed"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
