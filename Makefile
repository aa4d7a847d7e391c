# Shortcuts. Everything that must hold before a change lands is in .ci/run.
.PHONY: quick test race soak linearizability mutants explore fuzz bench bench-quick agree failover docs lint rehearse api

FUZZTIME ?= 1m

quick: ; go test -short .
test: ; go test ./...
race: ; go test -race ./...
soak: ; INFUSE_SOAK=60s go test -race -count=1 -run TestSoak -v -timeout 10m ./internal/fleettest
linearizability: ; cd linearizability && go test -count=1 -v .
mutants: ; INFUSE_MUTANTS=1 go test -run TestMutants -v -timeout 30m .
explore: ; INFUSE_EXPLORE=1 go test -run 'TestExplore$$' -v -timeout 3h .
fuzz: ; for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s $$p || exit 1; done; done
bench: ; cd bench && go run .
bench-quick: ; cd bench && go run . -quick
agree: ; cd bench && go run ./agree
failover: ; cd bench && go run ./failover
docs: ; go test -count=1 -run 'TestDocuments|TestPrograms|TestRecipes|TestReadme|TestOperationsHas|TestRulesHave|TestCorrectness|TestCapacity|TestNamesForAuthors|TestMinimalACL|TestFurtherRights|TestWhatACircuit' ./internal/tests/documents ./internal/tests/redis ./cmd/infuse
lint: ; test -z "$$(gofmt -l .)" && go vet ./... && go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
rehearse: ; go run ./internal/rehearse
api: ; go run ./internal/api
