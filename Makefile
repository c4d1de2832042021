# Two commands on a bare machine: `make demo` and `make test`. Each sets up everything it needs.

.PHONY: demo test test-fast lint lint-types lint-rest rooms docs setup wheels clean

demo: setup  ## The tour: audit, resolution, a refusal, a small hybrid learning text
	@bash scripts/demo.sh

# An import of Megatron takes 7 s, 2.5 of them for torch's compiler, which its decorators load. The tests
# start many processes, and compile nothing on a CPU, so they do without it; only the test that does as a
# user does (tests/test_outside_plugin.py) has it. Byte code is saved, which some environments forbid.
test test-fast: export TORCHDYNAMO_DISABLE = 1
test test-fast: export PYTHONDONTWRITEBYTECODE =
# A test file at a time on each core, in the order of conftest.py and not in xdist's.
pytest = .venv/bin/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder
test: setup lint  ## Everything that CI runs
	@$(pytest) $(ARGS)

test-fast: setup lint  ## The planner and the command line: neither torch nor Megatron is imported
	@$(pytest) --light $(ARGS)

lint: setup  ## Style, types and the arrows between rooms; types are most of it, and take one core
	@$(MAKE) --no-print-directory --jobs=2 lint-types lint-rest

lint-types:
	@bash scripts/types.sh

lint-rest:
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/lint-imports --no-cache >.tools/imports.log || { cat .tools/imports.log; exit 1; }
	@.venv/bin/python scripts/rooms.py >.tools/rooms.log || { cat .tools/rooms.log; exit 1; }

rooms: setup  ## The rooms of the source, the arrows between them, and any circle
	@.venv/bin/python scripts/rooms.py

# A quiet mkdocs hides its warnings from --strict too.
docs: setup  ## The documentation as a site, in site/; fails on a link that leads nowhere
	@.venv/bin/uv tool run --quiet --with 'mkdocstrings[python]>=1.0,<2' --with 'ruff>=0.17,<0.18' --from 'mkdocs>=1.6,<2' mkdocs build --strict >.tools/docs.log 2>&1 || { cat .tools/docs.log; exit 1; }

setup:
	@bash scripts/setup.sh

wheels: setup  ## Build the wheel of every distribution into dist/
	@for package in core plugins/*; do .venv/bin/python -m build --no-isolation --wheel --outdir dist $$package; done

clean:
	rm -rf .venv .tools dist site
