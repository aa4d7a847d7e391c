package fleettest

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience       = breakertest.Patience
	pace           = breakertest.Pace
	storageTimeout = 100 * time.Millisecond // the default
	pricesKey      = "infuse:{prices}"
)

var (
	errUnhealthy    = breakertest.ErrUnhealthy
	succeeds        = breakertest.Succeeds
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	hostOn          = breakertest.HostOn
	patiently       = breakertest.Patiently
	split           = breakertest.Split
	trip            = breakertest.Trip
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	eventuallyState = breakertest.EventuallyState
	recordOf        = breakertest.RecordOf
	waitOf          = breakertest.WaitOf
	goroutines      = breakertest.Goroutines
	leftSince       = breakertest.LeftSince
	startGroup      = breakertest.Many
	detachedOf      = breakertest.DetachedOf
)

type (
	stateLog = breakertest.StateLog
	edges    = breakertest.Edges
)

// TestMain is also where the test binary begins as a process of a fleet.
func TestMain(m *testing.M) {
	for name, serve := range map[string]func(spec string) error{asMember: serveAsMember, asSoaker: serveAsSoaker} {
		if spec := os.Getenv(name); spec != "" {
			if err := serve(spec); err != nil {
				fmt.Fprintln(os.Stderr, name+":", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	// The tests wait for servers more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(redistest.Run(m))
}

// takesLong skips a test that is not for every day. CI runs all.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "true" {
		t.Skip("takes long: CI=true runs it")
	}
}

// through has a client go through a proxy.
func through(proxy *redistest.Proxy) func(*redis.Options) {
	return func(o *redis.Options) { o.Addr = proxy.Addr() }
}

// quietRedis keeps go-redis from logging every connection that a fault costs.
var quietRedis = sync.OnceFunc(logging.Disable)
