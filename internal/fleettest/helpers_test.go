package fleettest

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
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
	errIll          = breakertest.ErrIll
	succeeds        = breakertest.Succeeds
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	hostOn          = breakertest.HostOn
	patiently       = breakertest.Patiently
	split           = breakertest.Split
	trip            = breakertest.Trip
	tripFleet       = breakertest.TripFleet
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	eventuallyState = breakertest.EventuallyState
	recordOf        = breakertest.RecordOf
	waitOf          = breakertest.WaitOf
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

// startGroup returns the breakers of a group, which share the link to their storage.
func startGroup(t testing.TB, n int, cfg infuse.Config) []*infuse.Breaker {
	t.Helper()
	cfg.MaxCircuits = n
	group, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(group.Stop)
	breakers := make([]*infuse.Breaker, n)
	for i := range breakers {
		breakers[i], err = group.Breaker(fmt.Sprint("circuit ", i))
		require.NoError(t, err)
	}
	return breakers
}

// through has a client go through a proxy.
func through(proxy *redistest.Proxy) func(*redis.Options) {
	return func(o *redis.Options) { o.Addr = proxy.Addr() }
}

// quietRedis keeps go-redis from logging every connection that a fault costs.
var quietRedis = sync.OnceFunc(logging.Disable)

// goroutines returns the stacks of all goroutines, by what stays the same of
// one as long as it lives: its number.
func goroutines() map[string]string {
	stacks := make([]byte, 1<<20)
	for {
		n := runtime.Stack(stacks, true)
		if n < len(stacks) {
			stacks = stacks[:n]
			break
		}
		stacks = make([]byte, 2*len(stacks))
	}
	byNumber := make(map[string]string)
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		number, _, _ := strings.Cut(stack, " [")
		byNumber[number] = stack
	}
	return byNumber
}

// leftSince returns the goroutines that were not there before and do not end.
func leftSince(before map[string]string) (left []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(pace) {
		left = nil
		for number, stack := range goroutines() {
			if _, old := before[number]; !old {
				left = append(left, stack)
			}
		}
		if left == nil {
			return nil
		}
	}
	return left
}
