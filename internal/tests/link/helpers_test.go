package link_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience = breakertest.Patience
	pace     = breakertest.Pace
)

var (
	errUnhealthy    = breakertest.ErrUnhealthy
	succeeds        = breakertest.Succeeds
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	trip            = breakertest.Trip
	tripFleet       = breakertest.TripFleet
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	recordOf        = breakertest.RecordOf
	waitOf          = breakertest.WaitOf
	startGroup      = breakertest.Many
	failuresOf      = breakertest.FailuresOf
	outcomes        = breakertest.Outcomes
	callOf          = breakertest.CallOf
	detachedOf      = breakertest.DetachedOf
	errTroubled     = breakertest.ErrTroubled
)

type (
	stateLog = breakertest.StateLog
	edges    = breakertest.Edges
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }

// What holds while the storage is unavailable holds for any storage: here for a
// stranger's that fails, hangs or panics on demand, in fake time, so that every
// wait is exact.

var errUnavailable = errors.New("the storage is unavailable")

const storageTimeout = 100 * time.Millisecond

// remote is somebody's storage: it keeps its records in memory, which its
// breakers cannot know, and lets every request meet its trouble first.
type remote struct {
	infuse.Storage

	mu      sync.Mutex
	trouble func() error
	cured   chan struct{} // closed when the trouble is over
	asked   []time.Time
	within  int // requests that are under way
	most    int // of them at a time
}

func newRemote() *remote {
	return &remote{Storage: infuse.NewMemoryStorage(), cured: make(chan struct{})}
}

func (r *remote) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := r.meet(); err != nil {
		return infuse.Record{}, err
	}
	defer r.leave()
	return r.Storage.Load(ctx, circuit)
}

func (r *remote) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := r.meet(); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	defer r.leave()
	return r.Storage.Apply(ctx, circuit, c)
}

func (r *remote) meet() (err error) {
	r.mu.Lock()
	r.asked = append(r.asked, time.Now())
	r.within++
	r.most = max(r.most, r.within)
	trouble := r.trouble
	r.mu.Unlock()
	healthy := false
	defer func() {
		if !healthy {
			r.leave()
		}
	}()
	if trouble != nil {
		err = trouble()
	}
	healthy = err == nil
	return err
}

func (r *remote) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.within--
}

func (r *remote) suffer(trouble func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trouble = trouble
}

// recover ends the trouble, also for the requests that hang in it.
func (r *remote) recover() {
	r.suffer(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.cured)
	r.cured = make(chan struct{})
}

// hang waits until the trouble is over.
func (r *remote) hang() error {
	r.mu.Lock()
	cured := r.cured
	r.mu.Unlock()
	<-cured
	return nil
}

// requests returns when it was asked since the last time that it was asked this.
func (r *remote) requests() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

func (r *remote) underWay() (now, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.within, r.most
}

func isUnavailable() error { return errUnavailable }

// troubles are the ways of a storage to be unavailable.
func (r *remote) troubles() map[string]func() error {
	return map[string]func() error{
		"fails":             isUnavailable,
		"panics":            func() error { panic("the storage is beside itself") },
		"hangs":             r.hang,
		"hangs, then fails": func() error { return errors.Join(r.hang(), errUnavailable) },
	}
}

// inFakeTime runs the test, and lets the storage end what it is at when all
// breakers have stopped.
func inFakeTime(t *testing.T, test func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Hour) }) // in no real time
		test(t)
	})
}

// inEveryTrouble runs the test with a storage that is healthy, and with each
// trouble for it to get into.
func inEveryTrouble(t *testing.T, test func(t *testing.T, r *remote, trouble func() error)) {
	for name := range newRemote().troubles() {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				defer r.recover()
				test(t, r, r.troubles()[name])
			})
		})
	}
}

// silent is a storage that never tells its watchers.
type silent struct{ infuse.Storage }

func (silent) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

// What callers, circuits and breakers share on the way to one storage.

// takes has each request take so long.
func takes(d time.Duration) func() error {
	return func() error {
		time.Sleep(d)
		return nil
	}
}

// A storage that several processes share, each on a way of its own.

var errLost = errors.New("a packet was lost")

// way is one process's way to a storage. What befalls a request on it is up to
// before and after, which may be nil. They are asked for each request.
type way struct {
	infuse.Storage

	mu            sync.Mutex
	before, after func(circuit string, c *infuse.Change) error
	changes       []infuse.Change // that were asked for
	loads         int
}

// between sets what happens on the way there, and on the way back.
func (w *way) between(before, after func(circuit string, c *infuse.Change) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.after = before, after
}

func (w *way) meet(circuit string, c *infuse.Change, there bool) error {
	w.mu.Lock()
	met := w.before
	if !there {
		met = w.after
	}
	w.mu.Unlock()
	if met == nil {
		return nil
	}
	return met(circuit, c)
}

func (w *way) Load(ctx context.Context, circuit string) (r infuse.Record, err error) {
	w.mu.Lock()
	w.loads++
	w.mu.Unlock()
	if err = w.meet(circuit, nil, true); err != nil {
		return r, err
	}
	if r, err = w.Storage.Load(ctx, circuit); err != nil {
		return r, err
	}
	return r, w.meet(circuit, nil, false)
}

func (w *way) Apply(ctx context.Context, circuit string, c infuse.Change) (r infuse.Record, v infuse.Verdict, err error) {
	w.mu.Lock()
	w.changes = append(w.changes, c)
	w.mu.Unlock()
	if err = w.meet(circuit, &c, true); err != nil {
		return r, v, err
	}
	if r, v, err = w.Storage.Apply(ctx, circuit, c); err != nil {
		return r, v, err
	}
	return r, v, w.meet(circuit, &c, false)
}

// slow has each request take so long.
func slow(d time.Duration) func(string, *infuse.Change) error {
	return func(string, *infuse.Change) error {
		time.Sleep(d)
		return nil
	}
}

// until has each request wait until the channel is closed.
func until(over <-chan struct{}) func(string, *infuse.Change) error {
	return func(string, *infuse.Change) error {
		<-over
		return nil
	}
}

func isLost(string, *infuse.Change) error { return errLost }
