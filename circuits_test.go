package infuse_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Which circuit a request meets, and how many there may be.

func TestTheHostIsTheCircuitByDefault(t *testing.T) {
	base := always(http.StatusInternalServerError, "ill")
	transport := &infuse.Transport{Base: base, Breakers: startGroup(t, infuse.Config{FailMax: 100})}
	for url, circuit := range map[string]string{
		"http://inventory.test/items?q=1":     "inventory.test",
		"https://user:word@Prices.TEST/items": "prices.test",
		"https://orders.test:8443":            "orders.test:8443",
		"http://[::1]:80/":                    "[::1]:80",
	} {
		r := newRequest(t, http.MethodGet, url, nil)
		r.Host = "virtual.test"
		for range 2 {
			_, err := transport.RoundTrip(r)
			require.NoError(t, err)
		}
		b, err := transport.Breakers.Breaker(circuit)
		require.NoError(t, err)
		require.Equal(t, 2, b.Failures(), circuit)
	}
}

func TestCircuitPicksTheName(t *testing.T) {
	sick := baseFunc(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.Path, "/search") {
			return always(http.StatusInternalServerError, "ill")(r)
		}
		return always(http.StatusOK, "well")(r)
	})
	transport := &infuse.Transport{
		Base: sick, Breakers: startGroup(t, infuse.Config{FailMax: 1}),
		Circuit: func(r *http.Request) string {
			route, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			return r.URL.Host + "/" + route
		},
	}
	get := func(path string) error {
		_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://shop.test"+path, nil))
		return err
	}
	require.NoError(t, get("/search/shoes"))
	require.ErrorIs(t, get("/search/hats"), infuse.ErrOpen)
	require.NoError(t, get("/items/7"), "another route of the same host")
}

// A name that no circuit may have is no reason to fail a request.
func TestARequestWithoutAValidCircuitGoesPastTheBreakers(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusInternalServerError, "ill"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		for _, name := range []string{"", strings.Repeat("x", infuse.MaxNameLength+1)} {
			c.transport.Circuit = func(*http.Request) string { return name }
			for range 3 {
				text, err := c.get()
				require.NoError(t, err)
				require.Equal(t, "ill", text)
			}
		}
	})
}

// A scheme of the Base's own is its own business.
func TestARequestOfAnotherSchemeGoesPastTheBreakers(t *testing.T) {
	base := &http.Transport{}
	base.RegisterProtocol("file", http.NewFileTransport(http.Dir(t.TempDir())))
	transport := &infuse.Transport{Base: base}
	response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "file:///missing", nil))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	_, _ = readAll(response)
}

// watchedStorage counts the circuits that are watched: the breakers that live.
type watchedStorage struct {
	infuse.Storage
	watched atomic.Int64
}

func (s *watchedStorage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	s.watched.Add(1)
	stopWatching := s.Storage.Watch(circuit, fn)
	return func() {
		stopWatching()
		s.watched.Add(-1)
	}
}

// Scenario 37: a crawler meets ten thousand hosts. What is kept of them is
// bounded; the circuits that are open are kept, however long ago they were used.
func TestTenThousandHostsStayBoundedAndOpenCircuitsAreKept(t *testing.T) {
	const bound, sick, hosts = 100, 20, 10_000
	storage := &watchedStorage{Storage: infuse.NewMemoryStorage()}
	var sent atomic.Int64
	transport := &infuse.Transport{
		Breakers: startGroup(t, infuse.Config{
			MaxCircuits: bound, FailMax: 1, Storage: storage, ResetTimeout: time.Hour, StorageTimeout: patience,
		}),
		Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			sent.Add(1)
			if strings.HasPrefix(r.URL.Host, "sick") {
				return always(http.StatusInternalServerError, "ill")(r)
			}
			return always(http.StatusOK, "")(r)
		}),
	}
	get := func(host string, i int) error {
		response, err := transport.RoundTrip(newRequest(t, http.MethodGet, fmt.Sprintf("http://%s-%d.test", host, i), nil))
		if err == nil {
			_, _ = readAll(response)
		}
		return err
	}
	for i := range sick {
		require.NoError(t, get("sick", i))
	}
	var crawlers sync.WaitGroup
	for worker := range 4 {
		crawlers.Go(func() {
			for i := worker; i < hosts; i += 4 {
				assert.NoError(t, get("well", i))
			}
		})
	}
	crawlers.Wait()
	require.Equal(t, int64(sick+hosts), sent.Load())
	require.Eventually(t, func() bool { return storage.watched.Load() <= bound }, patience, pace)
	for i := range sick {
		require.ErrorIs(t, get("sick", i), infuse.ErrOpen)
	}
	require.Equal(t, int64(sick+hosts), sent.Load())
}

// When every circuit is open, a request to yet another host is still sent.
func TestAtTheBoundARequestStillWorks(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		c := startWebClient(t, s, infuse.Config{MaxCircuits: 1})
		require.NoError(t, c.breaker.Open(t.Context()))
		_, err := c.get()
		require.ErrorIs(t, err, infuse.ErrOpen)

		c.transport.Circuit = func(*http.Request) string { return "another" }
		text, err := c.get()
		require.NoError(t, err)
		require.Equal(t, "well", text)

		require.NoError(t, c.breaker.Close(t.Context()))
		s.does(answers(http.StatusInternalServerError, "ill"))
		_, err = c.get()
		require.NoError(t, err)
		another, err := c.transport.Breakers.Breaker("another")
		require.NoError(t, err)
		require.Equal(t, 1, another.Failures(), "there is room for it again")
	})
}

func TestTheLeastRecentlyUsedHealthyCircuitGoesFirst(t *testing.T) {
	var ill atomic.Bool
	storage := &watchedStorage{Storage: infuse.NewMemoryStorage()}
	group := startGroup(t, infuse.Config{MaxCircuits: 3, Storage: storage, StorageTimeout: patience})
	transport := &infuse.Transport{Breakers: group, Base: baseFunc(func(r *http.Request) (*http.Response, error) {
		if ill.Load() {
			return always(http.StatusInternalServerError, "ill")(r)
		}
		return always(http.StatusOK, "")(r)
	})}
	get := func(host string) *infuse.Breaker {
		response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		require.NoError(t, err)
		_, _ = readAll(response)
		b, err := group.Breaker(host)
		require.NoError(t, err)
		return b
	}
	ill.Store(true)
	failing := get("failing.test") // the oldest, but not healthy
	ill.Store(false)
	first, second := get("first.test"), get("second.test")
	require.Same(t, first, get("first.test"))
	get("third.test") // in place of the second one
	require.Same(t, first, get("first.test"))
	require.Same(t, failing, get("failing.test"))
	require.NotSame(t, second, get("second.test"))
}

// The recipe of the README: a service, as it starts, has its callers try it at
// once, instead of waiting out the reset timeout.
func TestAServiceThatStartsAnnouncesItself(t *testing.T) {
	redis := redistest.Start(t)
	overBoth(t, func(t *testing.T, s *webServer) {
		cfg := patiently(infuse.Config{FailMax: 1, ResetTimeout: time.Hour})
		cfg.Storage = host(t, redis)
		caller := startWebClient(t, s, cfg)
		s.does(answers(http.StatusBadGateway, "ill"))
		_, err := caller.get()
		require.NoError(t, err)
		_, err = caller.get()
		require.ErrorIs(t, err, infuse.ErrOpen)

		s.does(answers(http.StatusOK, "well")) // deployed again, in a process of its own
		require.NoError(t, infuse.Announce(t.Context(), host(t, redis), s.circuit(), infuse.StateHalfOpen))
		require.Eventually(t, func() bool {
			text, err := caller.get()
			return err == nil && text == "well"
		}, patience, pace)
		requireState(t, infuse.StateClosed, caller.breaker)
	})
}

// The recipe of the README: a readiness page that tells the circuits a service
// depends on.
func TestAReadinessPageTellsTheCircuits(t *testing.T) {
	group := startGroup(t, infuse.Config{})
	page := infuse.Handler(func(w http.ResponseWriter, r *http.Request) error {
		for _, name := range []string{"inventory", "prices"} {
			b, err := group.Breaker(name)
			if err != nil {
				return err
			}
			if b.State() == infuse.StateOpen {
				http.Error(w, name+" is away", http.StatusServiceUnavailable)
				return nil
			}
		}
		_, err := fmt.Fprintln(w, "ready")
		return err
	}, nil)
	s := startWeb(t, "HTTP/1.1")
	s.does(page.ServeHTTP)
	status := func() int {
		response, err := http.Get(s.URL)
		require.NoError(t, err)
		_, _ = readAll(response)
		return response.StatusCode
	}
	require.Equal(t, http.StatusOK, status())
	prices, err := group.Breaker("prices")
	require.NoError(t, err)
	require.NoError(t, prices.Open(t.Context()))
	require.Equal(t, http.StatusServiceUnavailable, status())
	requireState(t, infuse.StateOpen, prices)
	require.NoError(t, prices.Close(t.Context()))
	require.Equal(t, http.StatusOK, status())
}
