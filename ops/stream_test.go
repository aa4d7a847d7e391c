package ops_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/infuse-go/infuse/ops"
)

// This file tests how open pages are kept up to date, and the cost.

// refusing is a storage that rejects all changes.
type refusing struct{ *counting }

func (refusing) Apply(context.Context, string, infuse.Change) (infuse.Record, infuse.Verdict, error) {
	return infuse.Record{}, infuse.VerdictRefused, errUnhealthy
}

func TestOpeningIsPushed(t *testing.T) {
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	breaker(t, local, "prices")
	address := serve(t, ops.Options{Group: local, Storage: storage})
	all, one := follow(t, address+"events"), follow(t, address+"events?circuit=prices")
	first := all.next(t)
	require.True(t, first.Full)
	require.Equal(t, "1 closed.", first.Summary)
	require.Len(t, first.Rows, 1)
	one.next(t)

	open(t, storage, breaker(t, remote, "prices"))
	f := all.until(t, func(f frame) bool { return f.Summary == "1 open." })
	require.Contains(t, f.Rows[0].HTML, "connection refused")
	one.until(t, func(f frame) bool { return len(f.Rows) > 0 && strings.Contains(f.Rows[0].HTML, "closed → open") })
}

func TestCircuitsOfOtherProcessesAreListed(t *testing.T) {
	takesLong(t) // the next list of the storage contains it
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	open(t, storage, breaker(t, local, "prices"))
	all := follow(t, serve(t, ops.Options{Group: local, Storage: storage})+"events")
	require.Equal(t, "1 open.", all.next(t).Summary)
	open(t, storage, breaker(t, remote, "stock"))
	all.until(t, func(f frame) bool { return f.Summary == "2 open." })
	require.NoError(t, breaker(t, remote, "stock").SetState(t.Context(), infuse.StateClosed))
	f := all.until(t, func(f frame) bool { return f.Summary == "1 open, 1 closed." })
	require.Len(t, f.Rows, 1, "only the row that has changed")
}

// A circuit that opens after the storage was listed is still open after the next read,
// which uses that list.
func TestOpeningAfterTheListIsKept(t *testing.T) {
	takesLong(t)
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	breaker(t, local, "prices")
	all := follow(t, serve(t, ops.Options{Group: local, Storage: storage})+"events")
	all.until(t, func(f frame) bool { return f.Summary == "1 closed." })
	time.Sleep(time.Second) // the storage is listed
	open(t, storage, breaker(t, remote, "prices"))
	began := time.Now()
	all.until(t, func(f frame) bool { return f.Summary == "1 open." })
	go func() {
		time.Sleep(8 * time.Second)
		all.close()
	}()
	for all.lines.Scan() {
		require.NotContains(t, all.lines.Text(), "1 closed.", "after %v", time.Since(began))
	}
}

// http.Server.Shutdown waits for requests in progress.
func TestStreamEndsWithItsServer(t *testing.T) {
	t.Parallel()
	h := ops.Handler(ops.Options{Storage: infuse.NewMemoryStorage()})
	s := httptest.NewServer(h)
	defer s.Close()
	viewer := follow(t, s.URL+"/events")
	viewer.next(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Config.Shutdown(ctx))
}

func TestNothingRunsWithoutViewers(t *testing.T) {
	storage := newCounting()
	group := groupOn(t, storage)
	fill(t, storage, 50)
	breaker(t, group, "prices")
	h := ops.Handler(ops.Options{Group: group, Storage: storage})
	watched := storage.watched.Load()
	before := breakertest.Goroutines()
	for range 3 {
		s := httptest.NewServer(h)
		var viewers []*events
		for range 20 {
			viewers = append(viewers, follow(t, s.URL+"/events"))
		}
		for _, v := range viewers {
			v.next(t)
		}
		require.Eventually(t, func() bool { return storage.watched.Load() >= watched+50 }, patience, pace)
		for _, v := range viewers {
			v.close()
		}
		s.Close()
		settled(t, before)
		require.Equal(t, watched, storage.watched.Load(), "no watch is left")
		asked := storage.requests.Load()
		time.Sleep(50 * time.Millisecond)
		require.Equal(t, asked, storage.requests.Load())
	}
}

// The request's context ends a stream even if the writer never fails.
func TestStreamEndsWithItsContext(t *testing.T) {
	h := ops.Handler(ops.Options{Group: groupOn(t, nil)})
	before := breakertest.Goroutines()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	h.ServeHTTP(httptest.NewRecorder(), newRequest(http.MethodGet, "/events", nil).WithContext(ctx))
	settled(t, before)
}

// A viewer that reads nothing delays no other viewer, and is dropped.
func TestViewerThatReadsNothingIsDropped(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	group := groupOn(t, storage)
	fill(t, storage, 200)
	h := ops.Handler(ops.Options{Group: group, Storage: storage})
	address := httptest.NewServer(h)
	t.Cleanup(address.Close)
	before := breakertest.Goroutines()
	w := &stuck{header: make(http.Header), since: make(chan time.Time, 100)}
	var slow sync.WaitGroup
	slow.Go(func() { h.ServeHTTP(w, newRequest(http.MethodGet, "/events", nil)) })
	deadline := <-w.since
	require.WithinDuration(t, time.Now().Add(10*time.Second), deadline, 5*time.Second)

	quick := follow(t, address.URL+"/events")
	quick.until(t, func(f frame) bool { return f.Summary == "200 open." })
	open(t, storage, breaker(t, group, "prices"))
	quick.until(t, func(f frame) bool { return strings.HasPrefix(f.Summary, "201 open") })
	quick.close()
	w.fail()
	slow.Wait()
	settled(t, before)
}

// stuck is a ResponseWriter whose client reads nothing: writes block until the deadline.
type stuck struct {
	header http.Header
	since  chan time.Time
	once   sync.Once
	mu     sync.Mutex
	failed chan struct{}
}

func (s *stuck) Header() http.Header { return s.header }
func (s *stuck) WriteHeader(int)     {}
func (s *stuck) Flush()              {}

func (s *stuck) failure() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = make(chan struct{})
	}
	return s.failed
}

func (s *stuck) fail() { s.once.Do(func() { close(s.failure()) }) }

func (s *stuck) Write([]byte) (int, error) {
	<-s.failure()
	return 0, errors.New("i/o timeout")
}

func (s *stuck) SetWriteDeadline(t time.Time) error {
	s.since <- t
	return nil
}

// A connection whose client does not read ends at its deadline.
func TestConnectionThatIsNotReadEnds(t *testing.T) {
	takesLong(t)
	if testing.Short() {
		t.Skip("waits for ten seconds")
	}
	t.Parallel()
	storage := infuse.NewMemoryStorage()
	fill(t, storage, 1000)
	ended := make(chan struct{})
	h := ops.Handler(ops.Options{Storage: storage})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		close(ended)
	}))
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_ = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
		return ctx
	}
	s.Start()
	t.Cleanup(s.Close)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4<<10))
	_, err = conn.Write([]byte("GET /events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	require.NoError(t, err)
	select {
	case <-ended:
	case <-time.After(patience):
		require.FailNow(t, "the stream has not ended")
	}
}

// 200 viewers cause at most one read more than one viewer.
func TestViewersShareReads(t *testing.T) {
	takesLong(t)
	const circuits, watchFor = 100, 6 * time.Second
	cost := func(viewers int) (requests int64, took time.Duration) {
		began := time.Now()
		storage := newCounting()
		fill(t, storage, circuits)
		address := serve(t, ops.Options{Storage: storage})
		var all sync.WaitGroup
		var streams []*events
		for range viewers {
			streams = append(streams, follow(t, address+"events"))
		}
		for _, s := range streams {
			all.Go(func() {
				_ = page(t, address)
				s.until(t, func(f frame) bool { return f.Summary == "100 open." })
			})
		}
		time.Sleep(watchFor)
		all.Wait()
		for _, s := range streams {
			s.close()
		}
		return storage.requests.Load(), time.Since(began)
	}
	one, alone := cost(1)
	many, together := cost(200)
	t.Logf("%v with %d circuits: 1 viewer made %d requests to the storage, 200 made %d in %v more", watchFor, circuits, one, many, together-alone)
	const readEvery = 5 * time.Second
	later := int64((together - alone + readEvery - 1) / readEvery) // reads while 200 viewers came and left
	require.LessOrEqual(t, many, one+(1+later)*(circuits+1), "at most one read more, of viewers that came before the loop started")
}

// Concurrent page requests share one read.
func TestPagesShareReads(t *testing.T) {
	t.Parallel()
	storage := newCounting()
	fill(t, storage, 100)
	address := serve(t, ops.Options{Storage: storage})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { page(t, address) })
	}
	all.Wait()
	require.LessOrEqual(t, storage.requests.Load(), int64(3*101))
}

// 200 viewers cause as few Redis commands as one.
func TestViewersShareRedisCommands(t *testing.T) {
	takesLong(t)
	server := redistest.Start(t)
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	fill(t, storage, 1000)
	commands := func() (all int64) {
		counts, err := server.Commands(t.Context())
		require.NoError(t, err)
		for _, n := range counts {
			all += n
		}
		return all
	}
	cost := func(viewers int) (spent int64, took time.Duration) {
		address := serve(t, ops.Options{Storage: storage})
		began, before := time.Now(), commands()
		text := page(t, address)
		t.Logf("page with 1,000 circuits in Redis: %d bytes, all of it after %v", len(text), time.Since(began))
		var all sync.WaitGroup
		for range viewers {
			s := follow(t, address+"events")
			all.Go(func() {
				s.until(t, func(f frame) bool { return f.Summary == "1000 open." })
				time.Sleep(6 * time.Second)
				s.close()
			})
		}
		all.Wait()
		return commands() - before, time.Since(began)
	}
	one, alone := cost(1)
	many, together := cost(200)
	t.Logf("6s with 1,000 circuits: 1 viewer cost Redis %d commands, 200 cost %d in %v more", one, many, together-alone)
	longer := max(1, together.Seconds()/alone.Seconds())
	require.Less(t, float64(many), 2*float64(one)*longer, "at most one read more, in the time that 200 viewers take to connect")
}

// The figures in the documents.
func TestFigures(t *testing.T) {
	takesLong(t)
	storage := infuse.NewMemoryStorage()
	fill(t, storage, 1000)
	address := serve(t, ops.Options{Storage: storage})
	for _, query := range []string{"", "?limit=1000"} {
		began := time.Now()
		response, err := http.Get(address + query)
		require.NoError(t, err)
		first := time.Since(began)
		size := int64(0)
		buffer := make([]byte, 64<<10)
		for err == nil {
			var n int
			n, err = response.Body.Read(buffer)
			size += int64(n)
		}
		_ = response.Body.Close()
		t.Logf("page%s with 1,000 circuits: %d bytes, first byte after %v", query, size, first)
		time.Sleep(minReadAge)
	}
	view := func() {
		conn, err := net.Dial("tcp", strings.Split(address, "/")[2])
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = conn.Write([]byte("GET /infuse/events HTTP/1.1\r\nHost: localhost\r\n\r\n"))
		require.NoError(t, err)
		go func() {
			for buffer := make([]byte, 512); err == nil; {
				_, err = conn.Read(buffer)
			}
		}()
	}
	memory := func() int {
		time.Sleep(2 * time.Second)
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	view()
	before := memory()
	const viewers = 500
	for range viewers {
		view()
	}
	t.Logf("one more viewer of the same page: %d bytes, including both ends of its connection", (memory()-before)/viewers)
}

const minReadAge = 1100 * time.Millisecond

// takesLong skips a slow test outside CI.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "true" {
		t.Skip("slow: set CI=true")
	}
}
