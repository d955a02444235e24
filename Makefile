# circuitseal: build, test, demonstrate. Every target installs what it misses
# (Debian packages, Go modules) and works from a fresh checkout as root.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Any Go from 1.21 on fetches the toolchain that go.mod names.
export GOTOOLCHAIN := auto
export CGO_ENABLED := 0

BUILD   := build
BIN     := $(BUILD)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

PRODUCT := ./agent/cmd/circuitseal-agent ./controller/cmd/circuitseal-controller ./controller/cmd/sealctl

BUF      := go run github.com/bufbuild/buf/cmd/buf@v1.75.0
GOLANGCI := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## Install the Debian packages that building, testing and the demo need
	@deploy/install-deps

.PHONY: test-deps
test-deps:
	@deploy/install-deps test

.PHONY: generate-deps
generate-deps:
	@deploy/install-deps generate

.PHONY: build
build: ## Build the product and the lab's programs into build/bin
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(PRODUCT) ./testlab/cmd/...

.PHONY: demo
demo: deps build ## Run the product for real: two nodes, tunnels, faults, an independent tap
	$(BIN)/demo

.PHONY: test
test: deps test-deps build ## Run all tests; as root, what needs root runs too
	CIRCUITSEAL_BIN=$(abspath $(BIN)) go test -count=1 -vet=off ./...

.PHONY: test-slow
test-slow: deps ## Run the tests that wait for minutes, with nothing to do: of pre-shared keys that an agent misses
	CIRCUITSEAL_SLOW=1 go test -count=1 -vet=off -run '^TestContract$$/^wireguard-userspace$$/^a_dead_agent' -v ./agent/wireguard | awk '{ print } /--- PASS: .*a_dead_agent/ { ran = 1 } END { exit !ran }'

.PHONY: test-tokens
test-tokens: ## Race 64 clients for each of 10,000 enrolment tokens, 100 of them over TLS (some minutes)
	CIRCUITSEAL_TOKEN_ROUNDS=10000 go test -count=1 -vet=off -timeout 60m -run '^TestOneToken(ManyClients|SixtyFourClients)$$' -v ./controller/store ./controller

.PHONY: lab
lab: deps build ## Run the scenarios on this kernel (SCENARIO=name,name for some)
	$(BIN)/lab $(if $(SCENARIO),--scenario $(SCENARIO))

.PHONY: kernelvm-deps
kernelvm-deps:
	@deploy/install-deps kernelvm

.PHONY: lab-kernel
lab-kernel: deps kernelvm-deps build ## Run the scenarios on a Debian kernel in QEMU (KERNEL=6.12|6.1|all, SCENARIO=name,name)
	$(BIN)/kernelvm lab $(if $(KERNEL),--kernel $(KERNEL)) $(if $(SCENARIO),--scenario $(SCENARIO))

.PHONY: lab-ci
lab-ci: deps kernelvm-deps build ## What CI runs of both labs: the fast scenarios, and tests that need a kernel
	CIRCUITSEAL_BIN=$(abspath $(BIN)) CIRCUITSEAL_REQUIRE_GUEST=1 go test -count=1 -vet=off -run Guest ./testlab/kernelvm
	$(BIN)/lab --fast
	# Three minutes, and the same on every kernel.
	$(BIN)/kernelvm lab --kernel 6.12 --scenario rekeys
	$(BIN)/kernelvm lab --fast --kernel all
	$(BIN)/kernelvm test --fast --kernel all

.PHONY: lab-matrix
lab-matrix: deps kernelvm-deps build ## Run everything on all kernels and write the table in docs/lab.md (40 minutes)
	$(BIN)/lab
	$(BIN)/kernelvm lab --kernel all
	$(BIN)/kernelvm test --kernel all
	$(BIN)/lab matrix $(BUILD)/lab/host.json $(BUILD)/lab/kernel.json $(BUILD)/lab/kernel-test.json

.PHONY: test-kernel
test-kernel: deps kernelvm-deps build ## Run the tests that need a kernel on one in QEMU (KERNEL=6.12|6.1|all, PKG="./agent/guard ...")
	$(BIN)/kernelvm test $(if $(KERNEL),--kernel $(KERNEL)) $(PKG)

.PHONY: bench-tunnel
bench-tunnel: deps build ## Goodput through both agents against WireGuard and strongSwan configured by hand
	$(BIN)/bench tunnel

.PHONY: bench-ike
bench-ike: deps ## 1,000 IPsec tunnels by the agent's driver against a plain loop over VICI, by turns
	mkdir -p $(BUILD)/bench
	CIRCUITSEAL_MANY_TUNNELS=1000 CIRCUITSEAL_MANY_ROUNDS=3 CIRCUITSEAL_MANY_RESULT=$(abspath $(BUILD))/bench/ike.json \
		go test ./agent/ipsec -run '^TestMany$$' -count=1 -timeout 30m -v

.PHONY: bench-tenancy
bench-tenancy: deps build ## 200 customers with the same prefixes on two nodes: time, memory, isolation
	$(BIN)/bench tenancy

.PHONY: fuzz
fuzz: ## Fuzz every parser of foreign bytes for FUZZTIME each (default 30s)
	@for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' .); do \
	  for name in $$(grep -oE '^func Fuzz[A-Za-z0-9]+' $$f | cut -d' ' -f2); do \
	    echo "== $$name ($$(dirname $$f))"; \
	    go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(or $(FUZZTIME),30s) -fuzzminimizetime 20x $$(dirname $$f); \
	  done; \
	done

.PHONY: generate
generate: generate-deps ## Regenerate wire types and eBPF objects
	cd proto && $(BUF) generate
	go generate ./...

.PHONY: verify
verify: generate-deps ## Generate, tidy, format and lint; fails when that changes a file
	@before=$$(git status --porcelain; git diff HEAD | sha256sum); \
	(cd proto && $(BUF) lint && $(BUF) generate); \
	go generate ./...; \
	go mod tidy; \
	gofmt -w agent controller proto testlab; \
	after=$$(git status --porcelain; git diff HEAD | sha256sum); \
	if [ "$$before" != "$$after" ]; then \
	  git --no-pager diff --stat; \
	  echo 'make verify: generated or formatted files were not up to date; they are now: look at them and commit them' >&2; exit 1; \
	fi
	$(GOLANGCI) run ./...

.PHONY: clean
clean: ## Remove build/
	rm -rf $(BUILD)
