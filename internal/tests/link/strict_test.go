package link_test

import (
	"context"
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

// 14,304 Strict calls in 4 s queued a read each at a storage that answers in
// 60 ms: 8,576 reads were made for nobody, and after that the next call waited
// for 100 ms in vain.
// R45.
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

// A thousand callers of one read that failed were a thousand failures one after the other,
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
// place in time, ran by an old view, and nothing reported that.
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
