package link_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// rude is an error whose methods do what they like.
type rude struct{ does func() }

func (e *rude) Error() string { e.does(); return "rude" }

func (e *rude) Unwrap() error { e.does(); return nil }

func (e *rude) Is(error) bool { e.does(); return false }

func (e *rude) As(any) bool { e.does(); return false }

func (e *rude) String() string { e.does(); return "rude" }

func (e *rude) Timeout() bool { e.does(); return false }

func (e *rude) Temporary() bool { e.does(); return false }

// An error whose As panicked left a lock held, and no call returned any more.
// R35.
func TestNoErrorOfAStorageBlocksABreaker(t *testing.T) {
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

// A panic within Apply left the lock of MemoryStorage taken.
func TestMemoryStorageIsUsableAfterAPanic(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	func() {
		defer func() { _ = recover() }()
		l := infuse.Limits{
			FailMax: 1000, ResetTimeout: time.Minute, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second,
			FailureRate: 0.5, Window: 5 * time.Millisecond, MinCalls: 10,
		}
		_, _, _ = storage.Apply(t.Context(), "one", infuse.Change{Limits: l, Counted: []infuse.Bucket{{Start: time.Now(), Calls: 1, Failures: 1}}})
	}()
	done := make(chan bool)
	go func() {
		_, _ = storage.Load(context.Background(), "another")
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
		t.Fatal("the storage of all circuits hangs")
	}
}
