package breakertest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Group is NewGroup for a test: the group is stopped when the test ends.
func Group(t testing.TB, cfg infuse.Config) *infuse.Group {
	t.Helper()
	g, err := infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(g.Stop)
	return g
}

// Of returns the breaker of the circuit with the name.
func Of(t testing.TB, g *infuse.Group, name string) *infuse.Breaker {
	t.Helper()
	b, err := g.Breaker(name)
	require.NoError(t, err)
	require.Equal(t, name, b.Name())
	return b
}

// Many returns n breakers of one group, which share the link to their storage.
func Many(t testing.TB, n int, cfg infuse.Config) []*infuse.Breaker {
	t.Helper()
	cfg.MaxCircuits = n
	group := Group(t, cfg)
	breakers := make([]*infuse.Breaker, n)
	for i := range breakers {
		breakers[i] = Of(t, group, fmt.Sprint("circuit ", i))
	}
	return breakers
}

// Storages are those with which a test must pass: memory notifies its watchers
// within Apply, and Redis on a goroutine of its own. Without a redis-server the
// test is skipped after it has passed with memory.
func Storages(t *testing.T) iter.Seq2[string, infuse.Storage] {
	return func(yield func(string, infuse.Storage) bool) {
		if yield("memory", infuse.NewMemoryStorage()) {
			yield("redis", Host(t, redistest.Start(t)))
		}
	}
}

// FailuresOf returns the consecutive failures of the local circuit or, if that is
// more, of the shared one.
func FailuresOf(b *infuse.Breaker) int {
	s := b.Stats()
	return max(s.Local.Failures, s.Shared.Failures)
}

// Outcomes makes calls: f fails, s succeeds. It returns after how many the circuit
// was open; 0 if it was not.
func Outcomes(t testing.TB, b *infuse.Breaker, calls string) int {
	t.Helper()
	for i, o := range calls {
		fn := Succeeds
		if o == 'f' {
			fn = Fails
		}
		_ = b.Call(context.Background(), fn)
		if b.State() == infuse.StateOpen {
			return i + 1
		}
	}
	return 0
}

// Ran makes calls for a while. It returns which share of them ran in each tenth of
// that time.
func Ran(t testing.TB, all []*infuse.Breaker, during time.Duration) (shares []float64) {
	t.Helper()
	const calls = 50 // of each, in a tenth
	for range 10 {
		n := 0
		for range calls {
			for _, b := range all {
				err := b.Call(context.Background(), Succeeds)
				if err == nil {
					n++
					continue
				}
				var rejected *infuse.OpenError
				require.ErrorAs(t, err, &rejected)
				require.Equal(t, infuse.StateClosed, rejected.State)
				require.Positive(t, rejected.RetryAfter())
				require.LessOrEqual(t, rejected.RetryAfter(), during)
			}
			time.Sleep(during / 10 / calls)
		}
		shares = append(shares, float64(n)/calls/float64(len(all)))
	}
	return shares
}

// EveryCall is a listener that records the outcome of each call.
func EveryCall(log *StateLog) *infuse.Listener {
	return &infuse.Listener{
		BeforeCall: func(context.Context, *infuse.Breaker) { log.Add("call") },
		Success:    func(context.Context, *infuse.Breaker) { log.Add("success") },
		Failure:    func(_ context.Context, _ *infuse.Breaker, err error) { log.Add("failure: " + err.Error()) },
		Ignored:    func(_ context.Context, _ *infuse.Breaker, err error) { log.Add(fmt.Sprint("ignored: ", err)) },
	}
}

// Late is a context whose deadline passed an hour ago.
func Late(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	t.Cleanup(cancel)
	return ctx
}

// Apart runs what may panic or end its goroutine, and waits for it.
func Apart(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		do()
	}()
	<-done
}

// PassSuspicion lets the shortest confirmation pass, in fake time.
func PassSuspicion() {
	time.Sleep(Suspicion)
	synctest.Wait()
}

// Allocations returns the allocations of do: the least of several measurements,
// because breakers of earlier tests may be cleaned up meanwhile.
func Allocations(do func()) float64 {
	least := math.Inf(1)
	for range 5 {
		least = min(least, testing.AllocsPerRun(1000, do))
	}
	return least
}

// UnderRace reports that the race detector is on: sync.Pool then drops items on
// purpose, and a million calls take long.
var UnderRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}()

// Troubled is a storage that fails while it is down.
type Troubled struct {
	infuse.Storage
	Down  atomic.Bool
	Loads atomic.Int64
}

// ErrTroubled is the error of a Troubled storage.
var ErrTroubled = errors.New("the storage is down")

func (s *Troubled) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	s.Loads.Add(1)
	if s.Down.Load() {
		return infuse.Record{}, ErrTroubled
	}
	return s.Storage.Load(ctx, circuit)
}

func (s *Troubled) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if s.Down.Load() {
		return infuse.Record{}, infuse.VerdictRefused, ErrTroubled
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// Watched is a storage that counts the circuits that are watched: the breakers that
// have not stopped.
type Watched struct {
	infuse.Storage
	Circuits atomic.Int64
}

func (s *Watched) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	s.Circuits.Add(1)
	stopWatching := s.Storage.Watch(circuit, fn)
	return func() {
		stopWatching()
		s.Circuits.Add(-1)
	}
}

// WaitUntilDue lets the open duration pass, in fake time.
func WaitUntilDue(t *testing.T, b *infuse.Breaker) {
	t.Helper()
	time.Sleep(RequireRejected(t, b).RetryAfter())
	synctest.Wait()
}

// CallOf makes a call that fails or succeeds.
func CallOf(b *infuse.Breaker, fail bool) error {
	if fail {
		return b.Call(context.Background(), Fails)
	}
	return b.Call(context.Background(), Succeeds)
}

// DetachedOf returns the breakers whose shared circuit does not apply.
func DetachedOf(breakers []*infuse.Breaker) (detached []*infuse.Breaker) {
	for _, b := range breakers {
		if b.Stats().StorageErr != nil {
			detached = append(detached, b)
		}
	}
	return detached
}
