# Every target sets up what it needs; a set-up that is done costs no time.
.PHONY: run digits small test drills docs lint format lock audit setup clean

run: setup  ## customise the open model minilm on the sample reviews
	.venv/bin/espalier run examples/reviews.yaml

digits: setup  ## train ResNet-20 on handwritten digits
	.venv/bin/espalier run examples/digits.yaml

small: setup  ## the same model of reviews, made small by a recipe
	.venv/bin/espalier run examples/reviews-small.yaml

test: setup  ## in two processes of up to 4 GB; a file's tests stay together
	.venv/bin/python -m pytest -q -n 2 --dist loadfile

drills: setup  ## break it on purpose, often; prints what was tried and what was lost
	.venv/bin/python -m pytest -q tests/drills --long --timeout 7200

docs: setup  ## the pages of docs/ as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	MYPYPATH=.venv/link .venv/bin/mypy -p espalier

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

setup:
	@./setup.sh

COMPILE = .uv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header \
	--python-version 3.10
lock:  ## after a change of pyproject.toml; versions that still fit stay
	test -x .uv/bin/uv || ./setup.sh
	$(COMPILE) --extra pipeline pyproject.toml -o requirements.lock
	$(COMPILE) --group dev -c requirements.lock -o requirements-dev.lock
	./setup.sh
	.venv/bin/python docs/licences.py

AUDIT = .uv/bin/uv tool run --quiet --from pip-audit==2.10.1 pip-audit --strict --disable-pip \
	--require-hashes -r requirements.lock -r requirements-dev.lock
audit: setup  ## known weaknesses of the packages, but those that audit.txt has a reason for
	$(AUDIT) $$(sed -n 's/^\([A-Z][A-Za-z0-9-]*\) .*/--ignore-vuln \1/p' audit.txt)

clean:  ## what can be made again; runs/ and models/ stay
	rm -rf .uv .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
