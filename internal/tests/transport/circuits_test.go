package transport_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
)

// One client follows a redirect from a healthy host to an unhealthy
// one. Each hop meets the circuit of its own host.
func TestARedirectToAnotherHostMeetsThatHostsCircuit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		protocol := "HTTP/1.1"
		if s.EnableHTTP2 {
			protocol = "HTTP/2.0"
		}
		unhealthy := startWeb(t, protocol)
		unhealthy.does(answers(http.StatusInternalServerError, "failed"))
		s.does(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, unhealthy.URL, http.StatusFound) })
		c := startWebClient(t, s, infuse.Config{FailMax: 2})
		for range 2 {
			text, err := c.get()
			require.NoError(t, err)
			require.Equal(t, "failed", text)
		}

		_, err := c.get()
		var rejection *infuse.OpenError
		require.ErrorAs(t, err, &rejection)
		require.Equal(t, unhealthy.circuit(), rejection.Circuit)
		require.Equal(t, int64(2), unhealthy.calls.Load())
		require.Equal(t, int64(3), s.calls.Load(), "the first host was asked all the same")
		requireState(t, infuse.StateClosed, c.breaker)

		_, err = c.Get(unhealthy.URL)
		require.ErrorIs(t, err, infuse.ErrOpen)
	})
}

func TestARedirectedPostIsSentAgainByItsOwnMeans(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
				return
			}
			_, _ = io.Copy(w, r.Body)
		})
		c := startWebClient(t, s, infuse.Config{})
		response, err := c.Post(s.URL, "text/plain", strings.NewReader("order"))
		require.NoError(t, err)
		text, err := readAll(response)
		require.NoError(t, err)
		require.Equal(t, "order", text)
	})
}

func TestCircuitPicksTheName(t *testing.T) {
	unhealthy := baseFunc(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.Path, "/search") {
			return always(http.StatusInternalServerError, "failed")(r)
		}
		return always(http.StatusOK, "well")(r)
	})
	transport := &infuse.Transport{
		Base: unhealthy, Breakers: groupOf(t, infuse.Config{FailMax: 1}),
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
func TestARequestWithoutACircuitBypassesTheBreakers(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusInternalServerError, "failed"))
		c := startWebClient(t, s, infuse.Config{FailMax: 1})
		for _, name := range []string{"", strings.Repeat("x", infuse.MaxNameLength+1)} {
			c.transport.Circuit = func(*http.Request) string { return name }
			for range 3 {
				text, err := c.get()
				require.NoError(t, err)
				require.Equal(t, "failed", text)
			}
		}
	})
}

// A scheme of the Base's own is its own business.
func TestARequestOfAnotherSchemeBypassesTheBreakers(t *testing.T) {
	base := &http.Transport{}
	base.RegisterProtocol("file", http.NewFileTransport(http.Dir(t.TempDir())))
	transport := &infuse.Transport{Base: base}
	response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "file:///missing", nil))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	_, _ = readAll(response)
}

// A crawler meets ten thousand hosts. What is kept of them is bounded, and the
// circuits that are open are kept while they are in use.
func TestTenThousandHostsStayBounded(t *testing.T) {
	const bound, unhealthy, hosts = 100, 20, 10_000
	storage := &breakertest.Watched{Storage: infuse.NewMemoryStorage()}
	var sent atomic.Int64
	transport := &infuse.Transport{
		Breakers: groupOf(t, infuse.Config{
			MaxCircuits: bound, FailMax: 1, Storage: storage, ResetTimeout: time.Hour, StorageTimeout: patience,
		}),
		Base: baseFunc(func(r *http.Request) (*http.Response, error) {
			sent.Add(1)
			if strings.HasPrefix(r.URL.Host, "unhealthy") {
				return always(http.StatusInternalServerError, "failed")(r)
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
	for i := range unhealthy {
		require.NoError(t, get("unhealthy", i))
	}
	var crawlers sync.WaitGroup
	for worker := range 4 {
		crawlers.Go(func() {
			for i := worker; i < hosts; i += 4 {
				assert.NoError(t, get("well", i))
				assert.ErrorIs(t, get("unhealthy", i/4%unhealthy), infuse.ErrOpen)
			}
		})
	}
	crawlers.Wait()
	require.Equal(t, int64(unhealthy+hosts), sent.Load())
	for i := range unhealthy {
		require.ErrorIs(t, get("unhealthy", i), infuse.ErrOpen)
	}
	require.Equal(t, int64(unhealthy+hosts), sent.Load())
	require.Eventually(t, func() bool {
		runtime.GC() // stops the breakers that nothing refers to any more
		return storage.Circuits.Load() <= bound
	}, patience, pace)
}

// The circuit of the last request is at hand for the next one, unless the group
// has forgotten it meanwhile.
func TestACircuitThatTheGroupHasForgottenIsMadeAnew(t *testing.T) {
	group := groupOf(t, infuse.Config{MaxCircuits: 1})
	transport := &infuse.Transport{Base: always(http.StatusOK, ""), Breakers: group}
	get := func(host string) {
		response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		require.NoError(t, err)
		_, _ = readAll(response)
	}
	get("inventory.test")
	first := breakerOf(t, group, "inventory.test")
	breakerOf(t, group, "prices.test") // makes room
	get("inventory.test")
	again := breakerOf(t, group, "inventory.test")
	require.NotSame(t, first, again)
	require.NoError(t, again.SetState(t.Context(), infuse.StateOpen))
	_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
	require.ErrorIs(t, err, infuse.ErrOpen)
}

// http://h and http://h:80 had a circuit each, and so had "h" and "h.", and an
// international name and its ASCII form.
func TestAHostHasOneCircuitHoweverItIsWritten(t *testing.T) {
	for circuit, urls := range map[string][]string{
		"inventory.test": {
			"http://inventory.test/items?q=1", "https://inventory.test", "http://inventory.test:80", "https://inventory.test:443/",
			"http://inventory.test.", "https://inventory.test.:443", "http://inventory.test:", "https://user:word@INVENTORY.Test/items",
		},
		"inventory.test:443":             {"http://inventory.test:443", "http://Inventory.test.:443"},
		"inventory.test:80":              {"https://inventory.test:80"},
		"inventory.test:8443":            {"http://inventory.test:8443", "https://inventory.test:8443", "https://inventory.test.:8443/"},
		"snake_case.test":                {"http://snake_case.test", "http://Snake_Case.test:80"},
		"xn--bcher-kva.example":          {"http://bücher.example", "https://BÜCHER.example.", "https://xn--bcher-kva.example", "http://XN--BCHER-KVA.example:80", "http://b%C3%BCcher.example"},
		"xn--bcher-kva.example:8080":     {"http://bücher.example:8080", "https://xn--bcher-kva.example:8080"},
		"xn--fsqu00a.xn--0zwm56d":        {"http://例子.测试"},
		"xn--r8jz45g.xn--zckzah.example": {"http://例え.テスト.example"},
		"xn--h1alffa9f.xn--p1ai":         {"https://россия.рф", "https://РОССИЯ.РФ"},
		"127.0.0.1":                      {"http://127.0.0.1", "http://127.0.0.1:80", "https://127.0.0.1:443"},
		"127.0.0.1:8080":                 {"http://127.0.0.1:8080"},
		"[::1]":                          {"http://[::1]", "http://[::1]:80/", "https://[::1]:443"},
		"[2001:db8::a]:80":               {"https://[2001:DB8::A]:80"},
		"[fe80::1%Eth0]":                 {"http://[FE80::1%25Eth0]", "http://[fe80::1%25Eth0]:80"},
		"[fe80::1%eth0]:81":              {"http://[fe80::1%25eth0]:81"},
	} {
		transport := &infuse.Transport{Base: always(http.StatusInternalServerError, "failed"), Breakers: groupOf(t, infuse.Config{FailMax: 100})}
		for i, url := range urls {
			r := newRequest(t, http.MethodGet, url, nil)
			r.Host = "virtual.test"
			_, err := transport.RoundTrip(r)
			require.NoError(t, err)
			require.Equal(t, i+1, failuresOf(breakerOf(t, transport.Breakers, circuit)), url)
		}
	}
}

// Hosts that are none still have a name, or none, and nothing panics.
func TestAHostThatIsNone(t *testing.T) {
	for host, circuit := range map[string]string{
		".":                         ".",
		"a..":                       "a.",
		"b\xfcb":                    "xn--bb-gg4n", // U+FFFD stands for what is no UTF-8
		strings.Repeat("ü", 1000):   "",
		strings.Repeat("a", 1000):   "",
		"xn--\u00fc" + "--.example": "",
	} {
		transport := &infuse.Transport{Base: always(http.StatusOK, ""), Breakers: groupOf(t, infuse.Config{})}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		r.URL.Host = host
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		for b := range transport.Breakers.All() {
			if circuit != "" {
				require.Equal(t, circuit, b.Name())
			}
			require.NoError(t, infuse.CheckName(b.Name()))
		}
	}
}

// What net/http dials for a name, and what the circuit is called, are the same.
func TestTheCircuitIsNamedAsTheHostIsDialled(t *testing.T) {
	for _, host := range []string{"bücher.example", "BÜCHER.Example", "faß.example", "россия.рф", "例子.测试", "a.例え.b"} {
		var dialled string
		base := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, errUnhealthy
		}}
		transport := &infuse.Transport{Base: base, Breakers: groupOf(t, infuse.Config{})}
		_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		require.ErrorIs(t, err, errUnhealthy)
		for b := range transport.Breakers.All() {
			require.Equal(t, dialled, b.Name()+":80")
		}
	}
}

// A client's 1,100 dead hosts beside a dead service of ours evicted the circuit
// of the service: every call to it was sent.
func TestHostsThatAClientChoosesDoNotEvictACircuitInUse(t *testing.T) {
	const failMax, hosts = 5, 1100
	for name, perCall := range map[string]int{"one host a call": 1, "eleven hosts a call": 11} {
		t.Run(name, func(t *testing.T) {
			sent := make(map[string]int)
			transport := &infuse.Transport{
				Breakers: groupOf(t, infuse.Config{FailMax: failMax}),
				Base: baseFunc(func(r *http.Request) (*http.Response, error) {
					sent[r.URL.Host]++
					return nil, errUnhealthy
				}),
			}
			get := func(host string) {
				_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
				require.Error(t, err)
			}
			for range 3 {
				for i := range hosts {
					for range failMax {
						get(fmt.Sprintf("dead-%d.test", i))
					}
					if i%perCall == 0 {
						get("ours.test")
					}
				}
			}
			require.LessOrEqual(t, sent["ours.test"], failMax+2)
		})
	}
}

// Requests of a circuit whose settings are invalid went unprotected, and nobody
// was reported.
func TestInvalidSettingsOfACircuitAreReportedOnce(t *testing.T) {
	var warnings []string
	var g *infuse.Group
	listener := &infuse.Listener{Warning: func(b *infuse.Breaker, err error) {
		_, again := g.Breaker(b.Name()) // a listener may use the group
		require.ErrorContains(t, again, "Config.FailMax is -1")
		require.Zero(t, b.Stats().Local.Failures)
		warnings = append(warnings, b.Name()+": "+err.Error())
	}}
	for name, listeners := range map[string]map[string][]*infuse.Listener{
		"of the group":   {"": {listener}},
		"of the circuit": {"wrong.test": {nil, listener, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			warnings = nil
			var err error
			g, err = infuse.NewGroupFunc(func(circuit string) infuse.Config {
				cfg := infuse.Config{MaxCircuits: 2, Listeners: listeners[circuit]}
				if strings.HasPrefix(circuit, "wrong") {
					cfg.FailMax = -1
				}
				return cfg
			})
			require.NoError(t, err)
			defer g.Stop()
			transport := &infuse.Transport{Base: always(http.StatusOK, ""), Breakers: g}
			for range 20 {
				response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://wrong.test", nil))
				require.NoError(t, err)
				_, _ = readAll(response)
			}
			require.Len(t, warnings, 1)
			require.Contains(t, warnings[0], `wrong.test: infuse: the settings of circuit "wrong.test": infuse: Config.`)
			for i := range 100 {
				_, err := g.Breaker(fmt.Sprint("wrong-", i))
				require.Error(t, err)
			}
			require.LessOrEqual(t, len(warnings), 2, "MaxCircuits bounds them")
			require.NoError(t, g.Configure(infuse.Config{MaxCircuits: 2, Listeners: listeners[""]}))
			_, err = g.Breaker("wrong.test")
			require.Error(t, err)
			require.GreaterOrEqual(t, len(warnings), 2, "new settings, a new warning")
		})
	}
}

// Hosts that died and were never called again filled a group for good: nothing
// protected any further host.
func TestDeadHostsDoNotFillTheGroupForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 64
		sent := 0
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{MaxCircuits: bound}),
			Base: baseFunc(func(*http.Request) (*http.Response, error) {
				sent++
				return nil, errUnhealthy
			}),
		}
		get := func(host string, times int) {
			for range times {
				_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
				require.Error(t, err)
			}
		}
		for i := range bound {
			get(fmt.Sprintf("dead-%d.test", i), 5)
		}
		sent = 0
		get("failing.test", 100)
		require.Equal(t, 5, sent, "it is protected at once")
		time.Sleep(7 * 24 * time.Hour)
		for i := range bound {
			sent = 0
			get(fmt.Sprintf("also-failing-%d.test", i), 100)
			require.Equal(t, 5, sent)
		}
	})
}

// StorageDownReject rejected every call, but those that found the group full.
func TestStorageDownRejectRejectsBeyondMaxCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &troubled{Storage: infuse.NewMemoryStorage()}
		sent := 0
		transport := &infuse.Transport{
			Breakers: groupOf(t, infuse.Config{Storage: storage, MaxCircuits: 2, StorageDown: infuse.StorageDownReject}),
			Base: baseFunc(func(r *http.Request) (*http.Response, error) {
				sent++
				return always(http.StatusOK, "")(r)
			}),
		}
		get := func(host string) error {
			_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
			return err
		}
		require.NoError(t, get("a.test"))
		require.NoError(t, get("b.test"))
		storage.Down.Store(true)
		_, err := breakerOf(t, transport.Breakers, "a.test").Record(t.Context())
		require.ErrorIs(t, err, errTroubled)
		synctest.Wait()
		sent = 0
		for _, host := range []string{"a.test", "b.test", "c.test", "d.test", "a.test"} {
			require.ErrorIs(t, get(host), infuse.ErrOpen, host)
		}
		require.Zero(t, sent)
	})
}

func TestSkipBypassesTheBreaker(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answers(http.StatusInternalServerError, "failed"))
		c := startFailedClient(t, s)
		ctx := infuse.Skip(t.Context())
		response, err := c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.NoError(t, err)
		_, _ = readAll(response)
		require.Equal(t, 1, failuresOf(c.breaker), "it is not counted")

		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateOpen))
		response, err = c.Do(newRequest(t, http.MethodGet, s.URL, nil).WithContext(ctx))
		require.NoError(t, err, "it is sent though the circuit is open")
		_, _ = readAll(response)
		require.Equal(t, int64(2), s.calls.Load())
	})
}
