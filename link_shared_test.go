package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// What callers, circuits and breakers share on the way to one storage.

// takes has each request take so long.
func takes(d time.Duration) func() error {
	return func() error {
		time.Sleep(d)
		return nil
	}
}

// 14,304 Strict calls in 4 s queued a read each at a storage that answers in
// 60 ms: 8,576 reads were made for nobody, and after that the next call waited
// for 100 ms in vain.
func TestStrictCallersShareReadsAndLeaveNone(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		var heard edges
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true, Listeners: []*infuse.Listener{heard.Listener()}})
		r.suffer(takes(60 * time.Millisecond))
		r.requests()
		var all sync.WaitGroup
		var worst atomic.Int64
		for range 4000 {
			for range 4 {
				all.Go(func() {
					waited, err := waitOf(b, succeeds)
					assert.NoError(t, err)
					for seen := worst.Load(); int64(waited) > seen && !worst.CompareAndSwap(seen, int64(waited)); seen = worst.Load() {
					}
				})
			}
			time.Sleep(time.Millisecond)
		}
		all.Wait()
		_, most := r.underWay()
		loads := len(r.requests())
		t.Logf("16,000 calls: %d reads, at most %d at a time, the longest wait %v", loads, most, time.Duration(worst.Load()))
		require.Less(t, loads, 500)
		require.LessOrEqual(t, most, 10)
		heard.Require(t, 0, 0) // a call need not wait for two reads, one after the other
		waited, err := waitOf(b, succeeds)
		require.NoError(t, err)
		require.Equal(t, 60*time.Millisecond, waited)
		time.Sleep(10 * time.Second)
		require.Len(t, r.requests(), 1, "nothing is read for callers that have returned")
	})
}

// slowToAnswer is a storage whose answers are on their way for a while.
type slowToAnswer struct{ infuse.Storage }

func (s slowToAnswer) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	r, err := s.Storage.Load(ctx, circuit)
	time.Sleep(5 * time.Millisecond)
	return r, err
}

// A read that had begun before a call was the read of that call, too, and did not
// have what the call had to see.
func TestAReadThatIsSharedStartsAfterItsCallersAsked(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		b := startBreaker(t, "prices", infuse.Config{Storage: slowToAnswer{silent{memory}}, Strict: true})
		var rejected sync.WaitGroup
		for i := range 1000 {
			opens := i == 500
			if opens {
				require.NoError(t, infuse.Announce(t.Context(), memory, "prices", infuse.StateOpen))
			}
			rejected.Go(func() {
				if err := b.Call(t.Context(), succeeds); i >= 500 {
					assert.ErrorIs(t, err, infuse.ErrOpen, "call %d", i)
				}
			})
			time.Sleep(100 * time.Microsecond)
		}
		rejected.Wait()
	})
}

// 4,000 Strict calls at once left as many reads behind, and a second later a call
// ran in a circuit that had been open all that time.
func TestAStrictCallMeetsTheOpenCircuitAfterABurst(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		r := newRemote()
		r.Storage = silent{memory}
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true})
		r.suffer(takes(60 * time.Millisecond))
		var all sync.WaitGroup
		for range 4000 {
			all.Go(func() { assert.NoError(t, b.Call(t.Context(), succeeds)) })
		}
		all.Wait()
		require.NoError(t, infuse.Announce(t.Context(), memory, "prices", infuse.StateOpen))
		time.Sleep(time.Second)
		requireRejected(t, b)
		require.NoError(t, b.Stats().StorageErr)
	})
}

// A thousand callers of one read that failed were a thousand failures in a row,
// and the circuit tried again after a second in place of 50 ms.
func TestAReadThatFailsIsOneFailureForAllItsCallers(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true})
		r.suffer(func() error {
			time.Sleep(time.Millisecond)
			return &infuse.RecordError{Circuit: "prices", Reason: "is garbage"}
		})
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { _ = b.Call(t.Context(), succeeds) })
		}
		all.Wait()
		require.Error(t, b.Stats().StorageErr)
		r.recover()
		time.Sleep(80 * time.Millisecond)
		require.NoError(t, b.Stats().StorageErr)
	})
}

// A caller that waits for a read does not go on to wait once the storage is known
// to be unavailable, whichever read that is.
func TestCallersOfAReadDoNotWaitForAStorageThatIsKnownToBeUnavailable(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		defer r.recover()
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true})
		r.suffer(r.hang)
		began := time.Now()
		var all sync.WaitGroup
		for range 9 {
			all.Go(func() {
				assert.NoError(t, b.Call(t.Context(), succeeds))
				assert.LessOrEqual(t, time.Since(began), storageTimeout)
			})
			time.Sleep(storageTimeout / 10)
		}
		all.Wait()
	})
}

// All places were taken by slow changes of other circuits. A Strict call had no
// place in time, ran by an old view, and nothing told that.
func TestAStrictCallThatCouldNotReadSaysSo(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		memory := infuse.NewMemoryStorage()
		r := newRemote()
		r.Storage = silent{memory}
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true})
		others := startGroup(t, 128, infuse.Config{FailMax: 1000, Storage: r})
		require.NoError(t, infuse.Announce(t.Context(), memory, "prices", infuse.StateOpen))
		r.suffer(takes(90 * time.Millisecond))
		for _, o := range others {
			go func() { _ = o.Call(context.Background(), fails) }()
		}
		synctest.Wait()
		waited, err := waitOf(b, succeeds)
		require.NoError(t, err, "the local circuit decides")
		require.Equal(t, storageTimeout, waited)
		require.ErrorContains(t, b.Stats().StorageErr, "did not answer within")
		require.NoError(t, others[0].Stats().StorageErr, "a busy storage is available")
		time.Sleep(time.Second)
		require.NoError(t, b.Stats().StorageErr)
		requireRejected(t, b)
	})
}

// Callers that gave up before their read had a place left it in the queue.
func TestCallersThatGiveUpLeaveNoReadBehind(t *testing.T) {
	inFakeTime(t, func(t *testing.T) {
		r := newRemote()
		b := startBreaker(t, "prices", infuse.Config{Storage: r, Strict: true})
		others := startGroup(t, 64, infuse.Config{FailMax: 1000, Storage: r})
		r.suffer(takes(90 * time.Millisecond))
		for _, o := range others {
			go func() { _ = o.Call(context.Background(), fails) }()
		}
		synctest.Wait()
		r.requests()
		before := runtime.NumGoroutine()
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { _ = b.Call(ctx, succeeds) })
		}
		synctest.Wait()
		cancel()
		all.Wait()
		require.Less(t, runtime.NumGoroutine(), before+100, "what waits for a place is bounded by the number of circuits")
		time.Sleep(10 * time.Second)
		require.Empty(t, r.requests())
		require.NoError(t, b.Stats().StorageErr, "callers that give up say nothing of the storage")
	})
}

// Each breaker that New made on a hanging storage found out by itself: 4 times
// 96 ms.
func TestBreakersThatAreMadeOneByOneShareALink(t *testing.T) {
	for name, wrap := range map[string]func(r *remote) infuse.Storage{
		"a pointer": func(r *remote) infuse.Storage { return r },
		"a value":   func(r *remote) infuse.Storage { return silent{r} },
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				r.suffer(r.hang)
				defer r.recover()
				began := time.Now()
				for i := range 4 {
					startBreaker(t, fmt.Sprint(i), infuse.Config{Storage: wrap(r)})
				}
				require.LessOrEqual(t, time.Since(began), storageTimeout)
			})
		})
	}
}

// together is a storage that cannot be compared.
type together []infuse.Storage

func (s together) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	return s[0].Load(ctx, circuit)
}

func (s together) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	return s[0].Apply(ctx, circuit, c)
}

func (s together) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	return s[0].Watch(circuit, fn)
}

// unequal is a storage that does not equal itself.
type unequal struct {
	infuse.Storage
	number float64
}

// A map of the links held every storage, and all that it refers to, for good.
func TestALinkGoesWithItsLastCircuit(t *testing.T) {
	storages := map[string]func() infuse.Storage{
		"memory":              func() infuse.Storage { return infuse.NewMemoryStorage() },
		"the zero value":      func() infuse.Storage { return &infuse.MemoryStorage{} },
		"a pointer":           func() infuse.Storage { return newRemote() },
		"a value":             func() infuse.Storage { return silent{newRemote()} },
		"not comparable":      func() infuse.Storage { return together{infuse.NewMemoryStorage()} },
		"holds no comparable": func() infuse.Storage { return silent{together{infuse.NewMemoryStorage()}} },
		"not equal to itself": func() infuse.Storage { return unequal{infuse.NewMemoryStorage(), math.NaN()} },
		"unavailable": func() infuse.Storage {
			r := newRemote()
			r.suffer(isAway)
			return r
		},
	}
	for name, storage := range storages {
		t.Run(name, func(t *testing.T) {
			for range 10 {
				cfg := infuse.Config{Storage: storage()}
				group, err := infuse.NewGroup(cfg)
				require.NoError(t, err)
				one, err := group.Breaker("one")
				require.NoError(t, err)
				other, err := infuse.New("other", cfg)
				require.NoError(t, err)
				_ = one.Call(t.Context(), fails)
				other.Stop()
				group.Stop()
				require.False(t, infuse.IsLinked(cfg.Storage))
				_ = one.Call(t.Context(), fails) // also a stopped one reports
				require.False(t, infuse.IsLinked(cfg.Storage))
			}
			forgotten := storage()
			for range 10 {
				_, err := infuse.New("forgotten", infuse.Config{Storage: forgotten})
				require.NoError(t, err)
			}
			require.Eventually(t, func() bool {
				runtime.GC()
				return !infuse.IsLinked(forgotten)
			}, patience, pace, "nor does it keep a breaker that nobody stops")
		})
	}
}

// A caller that had gone waited for the whole StorageTimeout, and then ran.
func TestACancelledCallerReturnsAtOnce(t *testing.T) {
	for name, strict := range map[string]bool{"from a trial": false, "from a read": true} {
		for _, when := range []time.Duration{0, 10 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " after ", when), func(t *testing.T) {
				inFakeTime(t, func(t *testing.T) {
					var heard edges
					r := newRemote()
					cfg := infuse.Config{FailMax: 1, TrialTimeout: time.Hour, Strict: strict, Storage: r, Listeners: []*infuse.Listener{heard.Listener()}}
					b := startBreaker(t, "prices", cfg)
					if !strict {
						require.NoError(t, b.SetState(t.Context(), infuse.StateOpen))
						time.Sleep(time.Minute)
					}
					r.requests()
					r.suffer(takes(80 * time.Millisecond))
					ctx, cancel := context.WithTimeout(t.Context(), when)
					defer cancel()
					began, ran := time.Now(), false
					err := b.Call(ctx, func(ctx context.Context) error {
						ran = true
						return ctx.Err()
					})
					require.Equal(t, when, time.Since(began))
					if strict {
						require.ErrorIs(t, err, context.DeadlineExceeded, "it is not rejected where nothing is open")
					} else {
						require.ErrorIs(t, err, infuse.ErrOpen)
						require.False(t, ran, "a trial that was not granted")
					}
					if when == 0 {
						synctest.Wait()
						require.Empty(t, r.requests(), "it asks for nothing")
					}
					time.Sleep(2 * storageTimeout) // a trial is granted, and given back
					require.NoError(t, b.Call(t.Context(), succeeds))
					requireState(t, infuse.StateClosed, b)
					require.Empty(t, recordOf(t, b).Trials)
					heard.Require(t, 0, 0)
				})
			})
		}
	}
}

func TestATypedNilIsNoStorage(t *testing.T) {
	for _, s := range []infuse.Storage{(*infuse.RedisStorage)(nil), (*infuse.MemoryStorage)(nil), (*remote)(nil), together(nil)} {
		_, err := infuse.New("prices", infuse.Config{Storage: s})
		require.ErrorContains(t, err, fmt.Sprintf("infuse: Config.Storage is a nil %T", s))
		_, err = infuse.NewGroup(infuse.Config{Storage: s})
		require.ErrorContains(t, err, "Config.Storage")
		require.Error(t, infuse.Announce(t.Context(), s, "prices", infuse.StateOpen))
	}
	b := startBreaker(t, "prices", infuse.Config{})
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: (*infuse.RedisStorage)(nil)}), "Config.Storage")
}

// All that was told of an outage was that the storage did not answer in time. That
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
		r.suffer(isAway)
		require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
		r.suffer(r.hang)
		time.Sleep(storageTimeout)
		require.ErrorIs(t, b.Stats().StorageErr, errAway)
	})
}

// rude is an error whose methods do what they like.
type rude struct{ does func() }

func (e *rude) Error() string   { e.does(); return "rude" }
func (e *rude) Unwrap() error   { e.does(); return nil }
func (e *rude) Is(error) bool   { e.does(); return false }
func (e *rude) As(any) bool     { e.does(); return false }
func (e *rude) String() string  { e.does(); return "rude" }
func (e *rude) Timeout() bool   { e.does(); return false }
func (e *rude) Temporary() bool { e.does(); return false }

// An error whose As panicked left a lock held, and no call returned any more.
func TestNoErrorOfAStorageWedgesABreaker(t *testing.T) {
	for name, does := range map[string]func(b *infuse.Breaker){
		"panic":  func(*infuse.Breaker) { panic("an error is beside itself") },
		"goexit": func(*infuse.Breaker) { runtime.Goexit() },
		"ask the breaker": func(b *infuse.Breaker) {
			if b != nil {
				_, _ = b.Stats(), b.Call(context.Background(), succeeds)
			}
		},
		"hang": func(*infuse.Breaker) { time.Sleep(time.Minute) },
	} {
		for _, fallback := range []infuse.StorageDownPolicy{infuse.StorageDownLocal, infuse.StorageDownReject} {
			t.Run(fmt.Sprint(name, ", ", fallback), func(t *testing.T) {
				inFakeTime(t, func(t *testing.T) {
					var asked atomic.Pointer[infuse.Breaker]
					r := newRemote()
					r.suffer(func() error { return &rude{func() { does(asked.Load()) }} })
					b, err := infuse.New("prices", infuse.Config{Storage: r, StorageDown: fallback, Strict: true})
					require.NoError(t, err)
					asked.Store(b)
					for range 20 {
						_ = b.Call(t.Context(), fails)
						require.Error(t, b.Stats().StorageErr)
						require.NotEmpty(t, b.Stats().StorageErr.Error())
						time.Sleep(100 * time.Millisecond)
					}
					_, err = b.Record(t.Context())
					require.NotErrorIs(t, err, errUnhealthy)
					require.Error(t, b.SetState(t.Context(), infuse.StateClosed))
					r.recover()
					time.Sleep(2 * time.Minute)
					require.NoError(t, b.Stats().StorageErr)
					r.suffer(func() error { return (*rude)(nil) })
					_, err = b.Record(t.Context())
					require.Error(t, err)
					b.Stop()
				})
			})
		}
	}
}

// watching is a storage whose Watch does what it likes.
type watching struct {
	infuse.Storage
	watch func() (stop func())
}

func (w *watching) Watch(string, func(infuse.Record)) func() { return w.watch() }

// After a panic in Watch or in its stop, the link kept its circuit for good. A
// panic at the end of a breaker that nobody stops ended the process.
func TestAWatchThatPanicsLeavesNothingBehind(t *testing.T) {
	rude := func() { panic("a watch is beside itself") }
	for name, watch := range map[string]func() (stop func()){
		"at once":  func() func() { rude(); return nil },
		"at stop":  func() func() { return rude },
		"no stop":  func() func() { return nil },
		"at leave": func() func() { return runtime.Goexit },
	} {
		t.Run(name, func(t *testing.T) {
			storage := &watching{infuse.NewMemoryStorage(), watch}
			if name == "at once" {
				require.Panics(t, func() { _, _ = infuse.New("prices", infuse.Config{Storage: storage}) })
				require.False(t, infuse.IsLinked(storage))
				return
			}
			b, err := infuse.New("prices", infuse.Config{Storage: storage})
			require.NoError(t, err)
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			require.Equal(t, 1, recordOf(t, b).Failures)
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				b.Stop()
			}()
			<-stopped
			require.False(t, infuse.IsLinked(storage))
		})
	}
	t.Run("of a breaker that nobody stops", func(t *testing.T) {
		storage := &watching{infuse.NewMemoryStorage(), func() func() { return rude }}
		_, err := infuse.New("prices", infuse.Config{Storage: storage})
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			runtime.GC()
			return !infuse.IsLinked(storage)
		}, patience, pace)
	})
	t.Run("ends the goroutine of New", func(t *testing.T) {
		storage := &watching{infuse.NewMemoryStorage(), func() func() { runtime.Goexit(); return nil }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = infuse.New("prices", infuse.Config{Storage: storage})
		}()
		<-done
		require.False(t, infuse.IsLinked(storage))
	})
}
