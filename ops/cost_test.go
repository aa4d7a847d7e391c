//go:build unix

package ops_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/infuse-go/infuse/ops"
)

// This file tests the cost of viewers with different queries.

// nowhere is a ResponseWriter that discards the page: browsers and connections add
// nothing to the cost.
type nowhere struct {
	header http.Header
	bytes  *atomic.Int64
}

func (n nowhere) Header() http.Header              { return n.header }
func (n nowhere) WriteHeader(int)                  {}
func (n nowhere) Flush()                           {}
func (n nowhere) SetWriteDeadline(time.Time) error { return nil }
func (n nowhere) Write(data []byte) (int, error) {
	n.bytes.Add(int64(len(data)))
	return len(data), nil
}

type cost struct {
	commands  int64         // of Redis
	cpu       time.Duration // of this process
	allocated uint64        // bytes
	heap      uint64        // bytes in use, with the viewers
	written   int64
}

func (c cost) String() string {
	return fmt.Sprintf("%d commands, %v of CPU time, %.1f MB allocated, %.1f MB in use, %.1f MB written", c.commands, c.cpu.Round(time.Millisecond), float64(c.allocated)/1e6, float64(c.heap)/1e6, float64(c.written)/1e6)
}

func (c cost) atMostTwice(one cost) bool {
	return c.commands <= 2*one.commands && c.cpu <= 2*one.cpu && c.heap <= 2*one.heap &&
		(underRace || c.allocated <= 2*one.allocated) // the race detector allocates for each write to a viewer
}

func cpuTime(t testing.TB) time.Duration {
	var usage syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// 100 viewers of 1,000 circuits in Redis, of which 10 change each second, cost at most
// twice as much as one viewer.
func TestQueriesShareTheCost(t *testing.T) {
	takesLong(t)
	const circuits, watchFor = 1000, 8 * time.Second
	server := redistest.Start(t)
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	fill(t, storage, circuits)
	var names []string
	for name, err := range storage.Circuits(t.Context()) {
		require.NoError(t, err)
		names = append(names, name)
	}
	commands := func() (all int64) {
		counts, err := server.Commands(t.Context())
		require.NoError(t, err)
		for _, n := range counts {
			all += n
		}
		return all
	}
	measure := func(queries []string) (c cost) {
		h := ops.Handler(ops.Options{Storage: storage})
		var written atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		request := func(path string) {
			h.ServeHTTP(nowhere{make(http.Header), &written}, newRequest(http.MethodGet, path, nil).WithContext(ctx))
		}
		request("/") // the first read
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		commandsBefore, cpuBefore := commands(), cpuTime(t)
		var all sync.WaitGroup
		for _, query := range queries {
			all.Go(func() {
				request("/?" + query)
				request("/events?" + query)
			})
		}
		end := time.After(watchFor)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-ticker.C:
				to := infuse.StateClosed
				if i/circuits%2 == 1 {
					to = infuse.StateOpen
				}
				_, _, err := storage.Apply(t.Context(), names[i*37%circuits], infuse.Change{Limits: infuse.Limits{FailMax: 5, ResetTimeout: time.Hour}, By: "shop-1", Manual: &infuse.ManualState{To: to}})
				require.NoError(t, err)
				continue
			case <-end:
			}
			break
		}
		c.commands, c.cpu = commands()-commandsBefore, cpuTime(t)-cpuBefore
		runtime.ReadMemStats(&after)
		c.allocated, c.written = after.TotalAlloc-before.TotalAlloc, written.Load()
		runtime.GC()
		runtime.ReadMemStats(&after)
		c.heap = after.HeapAlloc
		cancel()
		all.Wait()
		return c
	}
	for kind, query := range map[string]func(i int) string{
		"limits":   func(i int) string { return fmt.Sprint("limit=", 1000-i) },
		"filters":  func(i int) string { return "limit=1000&q=" + fmt.Sprint(i) },
		"circuits": func(i int) string { return "circuit=" + url.QueryEscape(names[i]) },
	} {
		t.Run(kind, func(t *testing.T) {
			var queries []string
			for i := range 100 {
				queries = append(queries, query(i))
			}
			var one, many cost
			for range 3 { // a busy machine may spoil a measurement
				one, many = measure([]string{"limit=1000"}), measure(queries)
				t.Logf("1 viewer:    %v", one)
				t.Logf("100 viewers: %v", many)
				if many.atMostTwice(one) {
					return
				}
			}
			require.FailNow(t, "viewers do not share the cost", "1 viewer: %v\n100 viewers: %v", one, many)
		})
	}
}
