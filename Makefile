# Everything happens in .venv; nothing outside this folder is touched.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Tools that only look at requirements, apart from what they look at.
SUPPLY := .cache/supply
# Real clients, apart from the server that they talk to: their packages are many, and some do not agree with its own.
CLIENTS := .cache/clients
CLIENT_PACKAGES := -r tests/clients/requirements.txt -c tests/clients/constraints.txt
# Workers of one thread each, three for two cores: tests of servers wait nearly half of their time.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); n=$$((n + (n + 1) / 2)); [ $$n -gt 8 ] && n=8; echo $$n)
# Scenarios wait for kubelets and controllers: two at a time, but for those that act on the whole cluster.
E2E_WORKERS ?= -n 2 --dist load --maxschedchunk 1
QUESTION ?= What is the capital of France? Answer in one short sentence.

# What builds an image: any command that takes -f FILE -t NAME FOLDER.
IMAGE_BUILD ?= docker build
IMAGE_TAG ?= dev
# By digest: a tag may come to name another image. docs/supply-chain.md says how to check it.
BASE_IMAGE ?= python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
# Where torch for the image of model pods comes from; pip's own index mostly has CUDA builds, which that image refuses.
TORCH_INDEX ?=

.PHONY: requirements sbom audit help quickstart quantize-demo test clients sanitize lint format bench crds images image-operator image-runtime chart e2e clean

help:
	@echo "make quickstart   install, fetch a small model, serve it and talk to it"
	@echo "make quantize-demo  the small model in 4 bits, what that cost, and a chat with it; minutes"
	@echo "make test         every test; no GPU, cluster or hub needed"
	@echo "make clients      LangChain, LlamaIndex, LiteLLM, the AI SDK and others against a served model"
	@echo "make sanitize     the C kernels under AddressSanitizer and UBSan, with hostile weights; ten minutes"
	@echo "make lint         ruff and mypy"
	@echo "make bench        speed beside other engines on this processor"
	@echo "make crds         crds/ and their reference in docs/, from api/"
	@echo "make images       container images of the operator and of model pods"
	@echo "make requirements the versions and hashes that images install"
	@echo "make sbom         an SBOM (CycloneDX) of the Python packages of each image"
	@echo "make audit        the SBOMs, and known advisories about these packages"
	@echo "make e2e          scenarios on the cluster of KUBECONFIG, or on a kind cluster made for them"
	@echo "make chart        the Helm chart, linted and rendered (needs helm)"

quickstart: $(VENV)/.runtime
	@$(BIN)/python -m plimsoll.cli.demo_model >/dev/null
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/plimsoll up -f examples/quickstart.yaml --chat; \
	else $(BIN)/plimsoll up -f examples/quickstart.yaml --ask "$(QUESTION)"; fi

# Sixteen short windows of text that the model writes itself; measured on prose that did not calibrate.
quantize-demo: $(VENV)/.runtime
	@$(BIN)/plimsoll quantize "$$($(BIN)/python -m plimsoll.cli.demo_model)" --work-dir .cache/plimsoll/smollm2-4bit \
	--w-group-size 64 --calib-samples 16 --calib-seqlen 256 --eval-dataset examples/prose.txt --eval-samples 7
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/plimsoll up -f examples/quantized.yaml --chat; \
	else $(BIN)/plimsoll up -f examples/quantized.yaml --ask "$(QUESTION)"; fi

# Bytecode is kept even where the environment says otherwise: hundreds of processes would compile the same modules.
# The workers' threads wait as the engine's do: by default they would spin where several tests run on each core. A worker
# that dies ends the run: xdist waits without end for files that a second one takes over. So does a test of 10 minutes.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 GOMP_SPINCOUNT=2000 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	--no-loadscope-reorder --max-worker-restart 0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true $(ARGS)

clients: $(VENV)/.runtime $(CLIENTS)/.installed
	@model=$$($(BIN)/python -m plimsoll.cli.demo_model) && PLIMSOLL_CLIENTS_COMMAND="$(BIN)/plimsoll serve $$model" \
	PLIMSOLL_CLIENTS_NODE=$(CLIENTS) $(CLIENTS)/bin/python -m pytest -rs --confcutdir tests/clients tests/clients $(ARGS)

sanitize: $(VENV)/.dev
	$(BIN)/python -m tests.hostile.sanitize $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@$(BIN)/python -m plimsoll.cli.demo_model >/dev/null
	$(BIN)/python -m benchmarks.cpu $(ARGS)

crds: $(VENV)/.dev
	$(BIN)/plimsoll crds --kind ModelDeployment > crds/new && mv crds/new crds/plimsoll.dev_modeldeployments.yaml
	$(BIN)/plimsoll crds --kind QuantizationJob > crds/new && mv crds/new crds/plimsoll.dev_quantizationjobs.yaml
	$(BIN)/plimsoll crds --reference --kind ModelDeployment > crds/new && mv crds/new docs/reference.md
	$(BIN)/plimsoll crds --reference --kind QuantizationJob > crds/new && mv crds/new docs/reference-jobs.md
	cp crds/*.yaml charts/plimsoll/files/crds/

images: image-operator image-runtime

image-operator:
	$(IMAGE_BUILD) -f Dockerfile.operator -t plimsoll.dev/operator:$(IMAGE_TAG) --build-arg BASE=$(BASE_IMAGE) .

image-runtime:
	$(IMAGE_BUILD) -f Dockerfile.runtime -t plimsoll.dev/runtime:$(IMAGE_TAG) --build-arg BASE=$(BASE_IMAGE) \
	--build-arg TORCH_INDEX=$(TORCH_INDEX) .

# What the images install, with the hashes of every file of these versions; torch comes from an index of its own.
requirements: $(SUPPLY)/.installed
	for image in operator runtime; do $(BIN)/python -I cli/image_requirements.py $$image | \
	$(SUPPLY)/bin/pip-compile -q --upgrade --generate-hashes --unsafe-package torch --no-header --no-annotate --strip-extras --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-emit-options -c constraints.txt -o requirements-$$image.txt - || exit 1; done

# The Python packages of each image as CycloneDX, with versions and hashes; the file is validated before it is written.
sbom: $(SUPPLY)/.installed
	for image in operator runtime; do { cat requirements-$$image.txt; \
	if [ $$image = runtime ]; then grep '^torch==' constraints.txt; fi; } | PYTHONWARNINGS=ignore $(SUPPLY)/bin/cyclonedx-py requirements \
	--pyproject pyproject.toml --output-reproducible --output-format JSON -o sbom-$$image.json - || exit 1; done

# Known advisories about them. ARGS=--if-reachable: no failure where the database of advisories does not answer.
audit: sbom
	@$(BIN)/python -I cli/image_audit.py $(SUPPLY)/bin/pip-audit $(ARGS)

chart: $(VENV)/.dev
	@if command -v helm >/dev/null; then helm lint --strict charts/plimsoll; else \
	echo "chart: helm is not on PATH, so the chart was neither linted nor rendered" >&2; fi
	$(BIN)/python -m pytest tests/chart $(ARGS)

# KUBECONFIG's cluster where it is set, else one that kind makes, else every scenario skips and says so.
e2e: $(VENV)/.dev
	@$(BIN)/python -m plimsoll.cli.demo_model >/dev/null
	@if [ -z "$$KUBECONFIG" ] && command -v kind >/dev/null && command -v docker >/dev/null; then \
	e2e/in_kind.sh $(BIN)/python -m pytest e2e -rs $(E2E_WORKERS) $(ARGS); \
	else $(BIN)/python -m pytest e2e -rs $(E2E_WORKERS) $(ARGS); fi

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

# Stamps: pip runs again only when what it would install has changed. Constraints always apply, for torch above all.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (torch is large; minutes the first time) …"
	@$(BIN)/python -I cli/torch_build.py -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[runtime]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with what tests need (minutes the first time) …"
	@$(BIN)/python -I cli/torch_build.py -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.runtime

$(SUPPLY)/.installed: | $(BIN)/python
	@$(BIN)/python -m venv $(SUPPLY)
	@$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check pip-tools pip-audit cyclonedx-bom
	@touch $@

$(CLIENTS)/.installed: $(addprefix tests/clients/,requirements.txt constraints.txt package.json package-lock.json) | $(BIN)/python
	@echo "Installing the clients into $(CLIENTS) (minutes the first time) …"
	@$(BIN)/python -m venv $(CLIENTS)
	@# uv takes seconds where pip takes minutes, but does not read pip's settings: pip where uv reaches no index.
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(CLIENTS)/bin/uv pip install --quiet --python $(CLIENTS) $(CLIENT_PACKAGES) || \
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $(CLIENT_PACKAGES)
	@cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)
	@if command -v npm >/dev/null; then npm ci --prefix $(CLIENTS) --silent --no-audit --no-fund --ignore-scripts; else \
	echo "clients: npm is not on PATH, so the tests of the AI SDK skip" >&2; fi
	@touch $@

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 or newer was not found; give it as PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
