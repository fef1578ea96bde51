# make demo   set everything up and run the keyboard end to end (results in out/keyboard)
# make test   set everything up and run all tests
# make quick  the tests that take an instant
# make fuzz   long runs of damaged files against every reader and engine
# make times  finds out which tests are slow, by running all of them
# make arm64  the programs of the tests, and a scenario of the SDK, on a phone's instruction set, emulated
# make lint   style and types
# make android         builds and tests the Kotlin side (needs Maven and a JDK of version 17 or later)
# make apk            builds the sample keyboard as a debug APK, and shrunk, and prints their sizes
# make android-format  mends the style of Kotlin files
# make android-api     writes down anew what an app sees of the Kotlin side
# make android-bench   what Kotlin and Python add to the engine in a step of training, and the time of a suggestion
# make android-scenarios  writes down anew which scenarios pass on the JVM
# make ios-scenarios      the same for Swift on Linux
# make android-docs    the documentation of what is public, in android/target/docs
# make apk-e2e        builds the tests that phones run as an APK
# make emulator-e2e    runs the scenarios on a phone or an emulator (needs an Android SDK)
# make ios    builds and tests the Swift side (needs Swift 6, see ios/README.md)
# make round-of-three  devices of Swift, Kotlin and Python in rounds of a real aggregator (Kotlin where there is Maven)
# make simulator-e2e  builds the sample keyboard and runs it in a simulator (needs a Mac)
# make ios-toolchain  unpacks Debian's Swift into a folder of its own, for machines that have apt and no Swift
# make operators  writes docs/operators.md anew: which operators train, by running each on every engine (7 minutes)
# make bench  one training step against PyTorch eager and the stock ExecuTorch artifact

VENV ?= .venv
BIN := $(VENV)/bin
# the first Python that this package supports
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# small operators are slower on many threads than on one
export OMP_NUM_THREADS ?= 1
# hundreds of processes of the tests would compile the same modules again
export PYTHONDONTWRITEBYTECODE :=
# three took up to 7.7 GB with what they start
WORKERS ?= -n 2

.PHONY: setup demo test quick fuzz times arm64 lint format android apk android-where-possible android-format android-api \
	android-bench android-scenarios android-docs apk-e2e emulator-e2e operators bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "pfl-mobile needs Python 3.11, 3.12 or 3.13; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/pfl demo keyboard --out out/keyboard

# neighbours in one process, as they share what is costly to make
test: setup
	$(BIN)/python -m pytest $(WORKERS) --dist worksteal
	@$(MAKE) --no-print-directory android-where-possible
	@$(MAKE) --no-print-directory ios-where-possible

quick: setup
	$(BIN)/python -m pytest $(WORKERS) --dist worksteal -m "not slow"

fuzz: setup
	PFL_FUZZ_SEEDS=3 PFL_EXAMPLES=1000 $(BIN)/python -m pytest $(WORKERS) --dist worksteal tests/fuzz

times: setup
	$(BIN)/python -m pytest $(WORKERS) --dist worksteal -p tests.times

arm64: setup
	PFL_REQUIRE_SERVICES=1 PFL_ARM64_STEPS=20 $(BIN)/python -m pytest $(WORKERS) --dist worksteal \
		tests/engines/test_arm64.py tests/exporters/test_targets.py tests/cli/test_bundles.py -k "arm64 or pytorch"
	@if command -v mvn >/dev/null; then $(BIN)/python android/arm64.py; \
	else echo "SKIPPED a scenario of the SDK on a JVM for ARM64: it needs Maven and a JDK"; fi

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy pfl_mobile exporters/pfl_exporters recipes/pfl_recipes server/pfl_server

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

MVN := cd android && mvn -q -B

android: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/apk.py resources
	$(BIN)/python android/instrumented.py resources
	$(MVN) verify -Dpython=$(abspath $(BIN)/python)

apk: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/apk.py
	$(BIN)/python android/release.py

android-where-possible:
	@if command -v mvn >/dev/null && \
	    test "$$(javac -version 2>&1 | sed -n 's/^javac \([0-9]*\).*/\1/p' | grep . || echo 0)" -ge 17; then \
	    $(MAKE) --no-print-directory android; \
	elif test -n "$$PFL_REQUIRE_SERVICES"; then \
	    echo "the Kotlin side needs Maven and a JDK of version 17 or later" >&2; exit 2; \
	else \
	    echo "SKIPPED the Kotlin side: it needs Maven and a JDK of version 17 or later"; \
	fi

android-format:
	$(MVN) -N antrun:run@ktlint -Dktlint.format=--format

android-api: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/apk.py resources
	$(BIN)/python android/instrumented.py resources
	rm -rf android/*/target/classes # of sources that are gone
	$(MVN) test -Dapi.write=true -Dtest=ApiTest -Dsurefire.failIfNoSpecifiedTests=false

android-bench: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python bench/android_step.py --json

android-scenarios: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/apk.py resources
	$(BIN)/python android/instrumented.py resources
	$(MVN) test -Dscenarios.write=true -Dpython=$(abspath $(BIN)/python) \
		-Dtest='ScenariosTest,RobolectricScenariosTest' -Dsurefire.failIfNoSpecifiedTests=false

android-docs: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/docs.py

apk-e2e: setup
	$(BIN)/python android/desktop.py
	$(BIN)/python android/instrumented.py

# more for it: make emulator-e2e E2E="--serial emulator-5554"
emulator-e2e: setup
	$(BIN)/python android/emulator.py $(E2E)

operators: setup
	$(BIN)/python -m tests.exporters.operators.table --write

bench: setup
	$(BIN)/python bench/train_step.py

# all that is built on Linux is built once: against stand-ins of Apple's modules, with warnings as errors
SWIFT := PFL_STRICT=1 PFL_APPLE_STUBS=1 ios/swift.sh
.PHONY: ios ios-scenarios ios-toolchain ios-where-possible simulator-e2e
ios:
	ios/swift.sh format lint --strict --recursive --parallel Sources Tests Keyboard Package.swift
	$(SWIFT) test
	ios/apple.sh
	python3 ios/docs.py

# more for it: make simulator-e2e E2E="--destination 'platform=iOS Simulator,name=iPhone 16 Pro'"
simulator-e2e: setup
	$(BIN)/python ios/simulator.py $(E2E)

ios-toolchain:
	ios/toolchain.sh

ios-where-possible:
	@if ios/swift.sh --version >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory ios; \
	elif test -n "$$PFL_REQUIRE_SERVICES"; then \
	    ios/swift.sh --version; exit 2; \
	else \
	    echo "SKIPPED the Swift side: it needs Swift 6; where apt is, make ios-toolchain gets it"; \
	fi

ios-scenarios: setup
	$(BIN)/python ios/scenarios.py

.PHONY: round-of-three
round-of-three: setup
	$(BIN)/python android/desktop.py
	$(SWIFT) build --product pfl-swift-device
	@if command -v mvn >/dev/null; then $(MVN) -pl core test-compile; fi
	$(BIN)/python ios/rounds.py
	$(BIN)/python ios/faults.py

clean:
	rm -rf $(VENV) out build android/target android/*/target ios/.build .pytest_cache .mypy_cache .ruff_cache
	ios/toolchain.sh remove
