package fleettest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// commandLog keeps the commands that a client has sent.
type commandLog struct {
	mu   sync.Mutex
	sent []redis.Cmder
}

func (l *commandLog) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *commandLog) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		l.mu.Lock()
		l.sent = append(l.sent, cmd)
		l.mu.Unlock()
		return next(ctx, cmd)
	}
}

func (l *commandLog) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (l *commandLog) all() []redis.Cmder {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]redis.Cmder(nil), l.sent...)
}

// The script touched keys of several slots, which a Redis Cluster
// refuses (CROSSSLOT): nothing worked that worked on a single server.
func TestInAClusterEveryCommandTouchesOneSlot(t *testing.T) {
	takesLong(t)
	cluster := redistest.StartCluster(t, 3)
	var log commandLog
	client := cluster.Client()
	client.AddHook(&log)
	here, there := hostOn(t, client), hostOn(t, cluster.Client())
	var troubles stateLog
	cfg := patiently(infuse.Config{ResetTimeout: 100 * time.Millisecond, Listeners: []*infuse.Listener{{
		StorageUnavailable: func(err error) { troubles.Add(err.Error()) },
		Warning:            func(b *infuse.Breaker, err error) { troubles.Add(fmt.Sprintf("%q: %v", b.Name(), err)) },
	}}})
	names := []string{"{", "}", "{}", "{a}b", "a}{b", "a b", "a\nb", "é"}
	for i := range 24 {
		names = append(names, fmt.Sprint("service-", i))
	}

	for _, name := range names {
		cfg.Storage = here
		one := startBreaker(t, name, cfg)
		cfg.Storage = there
		two := startBreaker(t, name, cfg)
		require.NoError(t, one.SetState(t.Context(), infuse.StateOpen))
		eventuallyState(t, infuse.StateOpen, two)
		for _, b := range []*infuse.Breaker{two, one} { // one has reason of its own, and begins with a trial more
			require.Eventually(t, func() bool { return b.Call(t.Context(), succeeds) == nil }, patience, pace)
			eventuallyState(t, infuse.StateClosed, b)
		}
		require.Equal(t, errUnhealthy, one.Call(t.Context(), fails))
		require.NoError(t, one.SetState(t.Context(), infuse.StateOpen))
		eventuallyState(t, infuse.StateOpen, two)
	}
	require.Empty(t, troubles.All())

	for _, cmd := range log.all() {
		switch cmd.Name() {
		case "eval", "evalsha":
			key := cmd.Args()[3].(string)
			for i := range cmd.Args()[2].(int) { // all that are declared are on one slot, and Redis refuses others
				require.True(t, strings.HasPrefix(cmd.Args()[3+i].(string), key), "%v", cmd)
			}
		}
	}
	for _, node := range cluster.Nodes() {
		require.Positive(t, node.Client().DBSize(t.Context()).Val(), "the circuits are spread over the nodes")
	}
}
