package fleettest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Pub/Sub is only the fast way. What it loses is made good by the reload after
// each subscription and by the poll, within what RedisOptions.PollInterval says.

// Every subscriber is thrown out, again and again.
func TestSubscribersAreKilledInALoop(t *testing.T) {
	takesLong(t)
	s, clients, newcomer := startFault(t)
	admin := s.Client()
	tr := endure(t, clients, newcomer, func(tr *traffic) {
		to, missed := infuse.StateClosed, time.Duration(0)
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
			require.NoError(t, admin.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
			time.Sleep(10 * time.Millisecond)
			if tr.fleet[1].signal.State() == to { // it has learned of the last one all the same
				to = infuse.StateOpen - to
				require.NoError(t, tr.fleet[0].signal.SetState(t.Context(), to))
				missed++
			}
		}
		t.Logf("%d transitions were learned of in the loop", missed)
		require.Greater(t, missed, time.Duration(1))
	})
	tr.requireToldNever()
}

func (tr *traffic) requireToldNever() {
	tr.t.Helper()
	tr.requireTold(0, anyCircuit)
}

// The user may run scripts, but neither publish nor subscribe.
func TestPubSubIsNotPermitted(t *testing.T) {
	s, _, _ := startFault(t)
	require.NoError(t, s.Client().Do(t.Context(),
		"acl", "setuser", "app", "on", ">secret", "~*", "resetchannels", "+@all").Err())
	app := func(o *redis.Options) { o.Username, o.Password = "app", "secret" }
	tr := endure(t, [2]redis.UniversalClient{s.Client(app), s.Client(app)}, s.Client(app), func(*traffic) {
		time.Sleep(time.Second)
	})
	tr.requireToldNever()
}

// apart is a process whose Pub/Sub goes through a proxy, and its changes not.
func apart(t *testing.T, s *redistest.Server, opts infuse.RedisOptions) (*infuse.RedisStorage, *redistest.Proxy) {
	t.Helper()
	proxy := redistest.StartProxy(t, s.Addr())
	pubsub := s.Client(func(o *redis.Options) { o.Addr = proxy.Addr() })
	storage := infuse.NewRedisStorage(split(s.Client(), pubsub), opts)
	t.Cleanup(func() { _ = storage.Close() })
	return storage, proxy
}

// A message is published while the subscriber reconnects.
func TestAMessageIsMissedWhileTheSubscriberReconnects(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	storage, proxy := apart(t, s, infuse.RedisOptions{PollInterval: time.Hour}) // so that only the reload can tell
	b := startBreaker(t, "prices", patiently(infuse.Config{Storage: storage}))
	other := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, s)}))
	require.NoError(t, other.SetState(t.Context(), infuse.StateHalfOpen))
	eventuallyState(t, infuse.StateHalfOpen, b) // it is subscribed

	for range 5 {
		proxy.CutAll()
		require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
		began := time.Now()
		eventuallyState(t, infuse.StateOpen, b)
		t.Logf("learned of the transition after %v", time.Since(began).Round(time.Millisecond))
		require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
		eventuallyState(t, infuse.StateClosed, b)
	}
}

// The subscriber's connection dies without a sign: it is noticed,
// and a manual Close that was missed meanwhile is learned of, not undone.
func TestAMissedCloseIsLearnedOfByASilentSubscriber(t *testing.T) {
	takesLong(t)
	s, _, _ := startFault(t)
	storage, proxy := apart(t, s, infuse.RedisOptions{PollInterval: time.Hour})
	b := startBreaker(t, "prices", patiently(infuse.Config{Storage: storage}))
	other := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, s)}))
	require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
	eventuallyState(t, infuse.StateOpen, b)

	proxy.Swallow(true)
	require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
	generation := recordOf(t, other).Generation
	time.AfterFunc(5*time.Second, func() { proxy.Swallow(false) })
	began := time.Now()
	eventuallyState(t, infuse.StateClosed, b)
	t.Logf("learned of the transition after %v", time.Since(began).Round(time.Millisecond))
	requireStaysClosed(t, other, generation)
}

// requireStaysClosed looks whether anybody has restored what was closed.
func requireStaysClosed(t *testing.T, b *infuse.Breaker, generation int64) {
	t.Helper()
	require.Never(t, func() bool {
		r, err := b.Record(context.Background())
		return err == nil && (r.State != infuse.StateClosed || r.Generation > generation)
	}, time.Second, 20*time.Millisecond)
}

// A process was cut off from Redis altogether while the circuit was closed by
// hand. It took what it came back to for a loss, and put the open record back.
// R39.
func TestAMissedCloseIsNotUndone(t *testing.T) {
	s, _, _ := startFault(t)
	proxy := redistest.StartProxy(t, s.Addr())
	storage := infuse.NewRedisStorage(s.Client(through(proxy)), infuse.RedisOptions{PollInterval: 10 * time.Millisecond})
	t.Cleanup(func() { _ = storage.Close() })
	b := startBreaker(t, "prices", infuse.Config{Storage: storage})
	other := startBreaker(t, "prices", patiently(infuse.Config{Storage: host(t, s)}))
	require.NoError(t, other.SetState(t.Context(), infuse.StateOpen))
	eventuallyState(t, infuse.StateOpen, b)

	proxy.Swallow(true)
	_, err := b.Record(t.Context())
	require.Error(t, err, "it has found out that it is cut off")
	require.NoError(t, other.SetState(t.Context(), infuse.StateClosed))
	generation := recordOf(t, other).Generation
	requireState(t, infuse.StateOpen, b)
	proxy.Swallow(false)
	eventuallyState(t, infuse.StateClosed, b)
	requireStaysClosed(t, other, generation)
}

// Redis loses a record while every process that knows of it is subscribed: no
// message tells them, and still it is restored.
// R39.
func TestALostRecordIsRestored(t *testing.T) {
	s, _, _ := startFault(t)
	storage := infuse.NewRedisStorage(s.Client(), infuse.RedisOptions{PollInterval: time.Second})
	t.Cleanup(func() { require.NoError(t, storage.Close()) })
	b := startBreaker(t, "prices", patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour, Storage: storage}))
	require.NoError(t, b.SetState(t.Context(), infuse.StateOpen)) // one by time is restored once it is confirmed
	held := recordOf(t, b)
	require.NoError(t, s.Client().FlushAll(t.Context()).Err())
	began := time.Now()
	// A read of Record would itself find out: Redis is asked behind its back.
	require.Eventually(t, func() bool { return s.Client().Exists(t.Context(), pricesKey).Val() == 1 }, patience, pace)
	t.Logf("restored after %v", time.Since(began).Round(time.Millisecond))
	back := recordOf(t, b)
	require.Equal(t, held.State, back.State)
	require.Equal(t, held.Generation, back.Generation)
	require.WithinDuration(t, held.DueAt, back.DueAt, time.Second)
}

// Redis loses an override, or an open circuit, long after the last news of it:
// it was restored after 16 to 38 s, because the pauses between two polls had
// grown.
// R39.
func TestARecordThatHoldsCallsIsRestoredWithinAPoll(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b *infuse.Breaker) error{
		"forced open": func(b *infuse.Breaker) error {
			return b.Override(t.Context(), infuse.Override{State: infuse.StateOpen, Reason: "x"})
		},
		"forced closed": func(b *infuse.Breaker) error {
			return b.Override(t.Context(), infuse.Override{State: infuse.StateClosed, Reason: "x"})
		},
		"open": func(b *infuse.Breaker) error { return b.SetState(t.Context(), infuse.StateOpen) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			const poll = 200 * time.Millisecond
			storage := infuse.NewRedisStorage(s.Client(), infuse.RedisOptions{PollInterval: poll})
			t.Cleanup(func() { require.NoError(t, storage.Close()) })
			b := startBreaker(t, "prices", patiently(infuse.Config{ResetTimeout: time.Hour, Storage: storage}))
			require.NoError(t, change(b))
			held := recordOf(t, b)
			stalled := standstill(t.Context())
			time.Sleep(15 * poll) // no news
			var took []time.Duration
			for range 5 {
				time.Sleep(2 * poll)
				require.NoError(t, s.Client().FlushAll(t.Context()).Err())
				began := time.Now()
				require.Eventually(t, func() bool { return s.Client().Exists(t.Context(), pricesKey).Val() == 1 }, patience, pace)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("restored after %v", took)
			// 1.5 intervals, an eighth, and what an older record has to turn out as late. The
			// median, because a busy machine may delay one.
			require.Less(t, took[len(took)/2], poll*13/8+100*time.Millisecond+200*time.Millisecond+2*stalled())
			back := recordOf(t, b)
			require.Equal(t, held.State, back.State)
			require.Equal(t, held.Override, back.Override)
		})
	}
}
