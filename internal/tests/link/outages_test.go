package link_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// A hundred circuits of a process do not probe a hundred times: the pauses
// between attempts grow, differ, and are the storage's.
// R38.
func TestAHundredCircuitsProbeAsOne(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		r := newRemote()
		breakers := startGroup(t, 100, infuse.Config{FailMax: 3, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}})
		r.requests()
		r.suffer(isUnavailable)
		began := time.Now()
		for range 10 {
			for _, b := range breakers {
				_ = b.Call(t.Context(), fails)
			}
		}
		require.Len(t, r.requests(), 1, "one call found out for all")
		time.Sleep(time.Minute)
		probes := r.requests()
		require.Less(t, len(probes), 130, "of a minute, with a second and less between them")
		require.Greater(t, len(probes), 40)
		var pauses []time.Duration
		different := map[time.Duration]bool{}
		for i, at := range probes {
			pauses = append(pauses, at.Sub(began))
			different[pauses[i]] = true
			began = at
		}
		t.Logf("%d probes in a minute, the first pauses: %v", len(probes), pauses[:8])
		require.Less(t, pauses[0], 100*time.Millisecond)
		require.Greater(t, pauses[len(pauses)-1], 400*time.Millisecond)
		require.Greater(t, len(different), len(pauses)/2, "jittered")

		heard.Require(t, 1, 0)
		r.recover()
		time.Sleep(5 * time.Second)
		heard.Require(t, 1, 1)
		for _, b := range breakers {
			require.True(t, recordOf(t, b).Suspect())
		}
	})
}

// A storage that fails and recovers again and again is probed less and less
// eagerly, until it has been calm for a while.
// R38.
func TestAStorageThatComesAndGoesIsTriedLessAndLess(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{FailMax: 1000, Storage: r})
		firstPause := func() time.Duration {
			r.suffer(isUnavailable)
			_ = b.Call(t.Context(), fails)
			r.requests()
			began := time.Now()
			r.recover()
			time.Sleep(2 * time.Second)
			return r.requests()[0].Sub(began)
		}
		require.LessOrEqual(t, firstPause(), 76*time.Millisecond)
		for range 6 {
			firstPause()
		}
		require.GreaterOrEqual(t, firstPause(), 500*time.Millisecond)
		time.Sleep(time.Minute)
		require.LessOrEqual(t, firstPause(), 76*time.Millisecond)
	})
}

// full is a storage that reads, but takes changes only when the test lets it.
type full struct {
	infuse.Storage
	change func(apply func() error) error
}

func (f *full) Apply(ctx context.Context, circuit string, c infuse.Change) (r infuse.Record, v infuse.Verdict, err error) {
	err = f.change(func() (err error) {
		r, v, err = f.Storage.Apply(ctx, circuit, c)
		return err
	})
	return r, v, err
}

// The answer to a change that was made before the storage was full came after
// that was known, and all circuits went up and down once more.
func TestAnAnswerFromBeforeIsNoSignOfRecovery(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var outages stateLog
		storage := &full{Storage: infuse.NewMemoryStorage()}
		breakers := startGroup(t, 3, infuse.Config{Storage: storage, Listeners: []*infuse.Listener{{
			StorageUnavailable: func(error) { outages.Add("unavailable") },
			StorageAvailable:   func(time.Duration) { outages.Add("available") },
		}}})
		answers := make(chan struct{})
		storage.change = func(apply func() error) error {
			defer func() { <-answers }()
			return apply()
		}
		go func() { _ = breakers[0].Call(t.Context(), fails) }()
		synctest.Wait()
		storage.change = func(func() error) error { return errUnavailable }
		_ = breakers[1].Call(t.Context(), fails)
		close(answers)
		time.Sleep(time.Second) // it answers reads
		for range 3 {
			_ = breakers[0].Call(t.Context(), fails)
			time.Sleep(time.Second)
		}
		require.Equal(t, []string{"unavailable"}, outages.All(), "it refuses changes")
	})
}

func TestTheLogHasTheBeginningAndTheEndOfAnOutage(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{
			Storage:   r,
			Listeners: []*infuse.Listener{infuse.LogListener(slog.New(slog.NewTextHandler(&log, nil)))},
		})
		r.suffer(isUnavailable)
		for range 3 {
			_ = b.Call(t.Context(), fails)
		}
		time.Sleep(10 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		b.Stop()
		synctest.Wait() // listeners of a storage are called in the background
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.Len(t, lines, 2, log.String())
		for i, text := range []string{"storage unavailable, using local circuits", "storage available, using shared circuits"} {
			require.Contains(t, lines[i], text)
		}
		require.Contains(t, lines[0], errUnavailable.Error())
	})
}

// A record that cannot be read is that circuit's trouble alone.
// R36.
func TestAnUnreadableRecordIsNoOutageOfTheStorage(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		var warnings stateLog
		r := newRemote()
		good := startBreaker(t, "good", infuse.Config{FailMax: 2, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}})
		bad := startBreaker(t, "bad", infuse.Config{FailMax: 2, Storage: r, Listeners: []*infuse.Listener{heard.Listener(), {
			Warning: func(_ *infuse.Breaker, err error) { warnings.Add(err.Error()) },
		}}})
		r.suffer(func() error { return &infuse.RecordError{Circuit: "bad", Reason: "is garbage"} })
		trip(t, bad)
		r.recover()
		trip(t, good)
		time.Sleep(5 * time.Second)
		heard.Require(t, 0, 0)
		require.Equal(t, []string{`infuse: the record of circuit "bad" is garbage`}, warnings.All())
		require.True(t, recordOf(t, bad).Suspect())
	})
}

// Stopping breakers while the storage is unavailable, the one that probes among them,
// leaves the others with one that does, and in the end nobody.
func TestBreakersMayStopWhileTheStorageIsUnavailable(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		first := startBreaker(t, "first", infuse.Config{FailMax: 1, Storage: r})
		second := startBreaker(t, "second", infuse.Config{FailMax: 1, Storage: r})
		r.suffer(isUnavailable)
		trip(t, first)
		trip(t, second)
		first.Stop()
		time.Sleep(10 * time.Second)
		r.recover()
		time.Sleep(5 * time.Second)
		require.True(t, recordOf(t, second).Suspect())
		r.suffer(isUnavailable)
		_, err := second.Record(t.Context())
		require.ErrorIs(t, err, errUnavailable)
		second.Stop()
		r.requests()
		time.Sleep(time.Minute)
		require.Empty(t, r.requests())
	})
}

// All that was reported of an outage was that the storage did not answer in time. That
// it refuses connections, its client had found out a second later.
func TestTheReasonOfAnOutageIsTheStoragesOwn(t *testing.T) {
	refused := errors.New("dial tcp: connection refused")
	for name, trouble := range map[string]func() error{
		"of the request": func() error {
			time.Sleep(time.Second)
			return refused
		},
		"of a probe": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				defer r.recover()
				b := startBreaker(t, "prices", infuse.Config{Storage: r})
				other := startBreaker(t, "stock", infuse.Config{Storage: r})
				if trouble == nil {
					r.suffer(r.hang)
				} else {
					r.suffer(trouble)
				}
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
				require.ErrorContains(t, b.Stats().StorageErr, "did not answer within")
				if trouble == nil {
					r.suffer(func() error { return refused })
				}
				time.Sleep(2 * time.Second)
				for _, b := range []*infuse.Breaker{b, other} {
					require.ErrorIs(t, b.Stats().StorageErr, refused)
				}
				r.suffer(r.hang)
				time.Sleep(5 * time.Second)
				require.ErrorIs(t, b.Stats().StorageErr, refused, "better than no answer")
			})
		})
	}
}

// A request that was under way when another failed gets no answer in time a
// little later: that is not the reason of the outage.
func TestNoAnswerInTimeIsNoBetterReason(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		defer r.recover()
		b := startBreaker(t, "prices", infuse.Config{Storage: r})
		other := startBreaker(t, "stock", infuse.Config{Storage: r})
		r.suffer(r.hang)
		go func() { _ = other.Call(context.Background(), fails) }()
		time.Sleep(storageTimeout / 2)
		r.suffer(isUnavailable)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		r.suffer(r.hang)
		time.Sleep(storageTimeout)
		require.ErrorIs(t, b.Stats().StorageErr, errUnavailable)
	})
}

// A storage that does not answer is reported with the reason that it gives later,
// and once, however many circuits and breakers there are.
func TestAStorageOutageIsReportedOnceWithItsReason(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		var heard stateLog
		listener := &infuse.Listener{
			StorageUnavailable: func(err error) { heard.Add("unavailable: " + err.Error()) },
			StorageAvailable:   func(d time.Duration) { heard.Add("available after " + d.Round(10*time.Second).String()) },
		}
		cfg := infuse.Config{FailMax: 1000, Storage: r, Listeners: []*infuse.Listener{listener}}
		breakers := startGroup(t, 50, cfg)
		breakers = append(breakers, startBreaker(t, "other", cfg))
		refused := errors.New("dial tcp 10.0.0.7:6379: connect: connection refused")
		r.suffer(func() error {
			time.Sleep(400 * time.Millisecond) // longer than StorageTimeout
			return refused
		})
		for range 30 {
			for _, b := range breakers {
				_ = b.Call(t.Context(), fails)
			}
			time.Sleep(time.Second)
		}
		late := startBreaker(t, "late", cfg) // it joins during the outage
		_ = late.Call(t.Context(), fails)
		r.recover()
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"unavailable: " + refused.Error(), "available after 30s"}, heard.All())
		require.NoError(t, late.Stats().StorageErr)
	})
}

// The same with a Redis that is killed: go-redis tells the reason after its own
// attempts, which take longer than StorageTimeout.
func TestAKilledRedisIsReportedOnceWithItsReason(t *testing.T) {
	server := redistest.Start(t)
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{PollInterval: 200 * time.Millisecond})
	t.Cleanup(func() { _ = storage.Close() })
	var mu sync.Mutex
	var log bytes.Buffer
	lines := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Split(strings.TrimSpace(log.String()), "\n")
	}
	listener := infuse.LogListener(slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil)))
	breakers := startGroup(t, 30, infuse.Config{Storage: storage, Listeners: []*infuse.Listener{listener}})
	server.Kill()
	for _, b := range breakers {
		_ = b.Call(t.Context(), fails)
	}
	require.Eventually(t, func() bool { return strings.Contains(lines()[0], "storage unavailable") }, patience, pace)
	require.Contains(t, lines()[0], "connection refused")
	require.NoError(t, server.Restart())
	require.Eventually(t, func() bool { return len(lines()) >= 2 }, patience, pace)
	require.Contains(t, lines()[1], "storage available")
	require.Len(t, lines(), 2)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// garbled is a storage that can be unavailable, and the record of whose circuit "bad"
// cannot be read.
type garbled struct {
	infuse.Storage
	down *atomic.Bool
}

func (s garbled) fails(circuit string) error {
	switch {
	case s.down.Load():
		return errTroubled
	case circuit == "bad":
		return &infuse.RecordError{Circuit: circuit, Reason: "is garbage"}
	}
	return nil
}

func (s garbled) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	if err := s.fails(circuit); err != nil {
		return infuse.Record{}, err
	}
	return s.Storage.Load(ctx, circuit)
}

func (s garbled) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := s.fails(circuit); err != nil && (s.down.Load() || c.Manual == nil) {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	return s.Storage.Apply(ctx, circuit, c)
}

// A record that cannot be read when the storage is available again is a warning of its
// circuit, a manual change replaces it, and it does not prolong the outage for others.
// R36.
func TestARecordThatIsGarbageAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := new(atomic.Bool)
		var mu sync.Mutex
		var events []string
		add := func(event string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, event)
		}
		listener := &infuse.Listener{
			StorageUnavailable: func(error) { add("unavailable") },
			StorageAvailable:   func(time.Duration) { add("available") },
			Warning:            func(_ *infuse.Breaker, err error) { add(err.Error()) },
		}
		cfg := infuse.Config{Storage: garbled{infuse.NewMemoryStorage(), down}, Listeners: []*infuse.Listener{listener}}
		good := startBreaker(t, "good", cfg)
		down.Store(true)
		_, err := good.Record(t.Context()) // and it has nothing to store
		require.Error(t, err)
		bad := startBreaker(t, "bad", cfg)
		require.Error(t, callOf(bad, true))
		time.Sleep(10 * time.Second)
		down.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.ElementsMatch(t, []string{"unavailable", `infuse: the record of circuit "bad" is garbage`, "available"}, events)
		require.ErrorContains(t, bad.Stats().StorageErr, "is garbage")
		require.NoError(t, good.Stats().StorageErr)
		require.NoError(t, bad.SetState(t.Context(), infuse.StateClosed), "it replaces the record")
	})
}
