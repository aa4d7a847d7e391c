package recipes

// This file runs the code of docs/recipes.md.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

var errUnavailable = errors.New("503 Service Unavailable")

func fails(context.Context) error { return errUnavailable }

func start(t *testing.T, cfg infuse.Config) *infuse.Breaker {
	t.Helper()
	b, err := infuse.New("inventory", cfg)
	require.NoError(t, err)
	t.Cleanup(b.Stop)
	return b
}

// base answers requests without a network.
type base func(*http.Request) (*http.Response, error)

func (b base) RoundTrip(r *http.Request) (*http.Response, error) { return b(r) }

func TestThreeUpstreams(t *testing.T) {
	client, err := NewClient(nil)
	require.NoError(t, err)
	transport := client.Transport.(*infuse.Transport)
	defer transport.Breakers.Stop()
	transport.Base = base(func(*http.Request) (*http.Response, error) { return nil, errUnavailable })
	for host, failMax := range map[string]int{"inventory.internal": 5, "search.internal": 5, "prices.internal": 10} {
		sent := 0
		for ; sent < 20; sent++ {
			if _, err := client.Get("http://" + host); errors.Is(err, infuse.ErrOpen) {
				break
			}
		}
		require.Equal(t, failMax, sent, host)
	}
}

func TestFallback(t *testing.T) {
	var err error
	prices := &Prices{start(t, infuse.Config{FailMax: 1}), func(context.Context) (int, error) { return 250, err }, 0}
	for _, err = range []error{nil, errUnavailable, nil} {
		price, err := prices.Price(t.Context())
		require.NoError(t, err)
		require.Equal(t, 250, price)
	}
	require.Equal(t, infuse.StateOpen, prices.breaker.State())
}

func TestTimeoutOfEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, infuse.Config{FailMax: 1})
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		require.ErrorIs(t, CallWithin(t.Context(), b, hangs), context.DeadlineExceeded)
		require.ErrorIs(t, CallWithin(t.Context(), b, hangs), infuse.ErrOpen)
	})
	client := NewTryClient()
	require.Positive(t, client.Timeout)
	client.Timeout = 50 * time.Millisecond
	client.Transport.(*infuse.Transport).Base = base(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	for range 5 {
		_, err := client.Get("http://inventory.internal")
		require.True(t, err.(net.Error).Timeout())
	}
	_, err := client.Get("http://inventory.internal")
	require.ErrorIs(t, err, infuse.ErrOpen)
}

// database is a driver whose queries end with its error.
type database struct{ err error }

func (d *database) Connect(context.Context) (driver.Conn, error) { return connection{d}, nil }
func (d *database) Driver() driver.Driver                        { return nil }

type connection struct{ *database }

func (connection) Prepare(string) (driver.Stmt, error) { return nil, errors.New("not needed") }
func (connection) Begin() (driver.Tx, error)           { return nil, errors.New("not needed") }
func (connection) Close() error                        { return nil }
func (c connection) QueryContext(ctx context.Context, _ string, _ []driver.NamedValue) (driver.Rows, error) {
	if c.err == context.DeadlineExceeded {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, c.err
}

func TestDatabase(t *testing.T) {
	for err, counts := range map[error]bool{
		sql.ErrNoRows: false,
		errors.New("duplicate key value violates unique constraint"): false,
		errors.New("syntax error at or near SELECT"):                 false,
		driver.ErrBadConn: true,
		&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}: true,
		context.DeadlineExceeded:                            true,
	} {
		synctest.Test(t, func(t *testing.T) {
			breaker, invalid := NewDatabaseBreaker(nil)
			require.NoError(t, invalid)
			defer breaker.Stop()
			db := sql.OpenDB(&database{err})
			defer db.Close()
			for range 5 {
				_, err := CountOrders(t.Context(), breaker, db)
				require.Error(t, err)
				require.NotErrorIs(t, err, infuse.ErrOpen)
			}
			require.Equal(t, counts, breaker.State() == infuse.StateOpen, "%v", err)
		})
	}
}

// jobs is a queue in memory.
type jobs chan Job

var errEmpty = errors.New("no jobs are left")

func (q jobs) PutBack(j Job) { q <- j }
func (q jobs) Receive(context.Context) (Job, error) {
	select {
	case j := <-q:
		return j, nil
	default:
		return nil, errEmpty
	}
}

// Two consumers pause while the circuit is open, and continue after the trial.
func TestConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, storage := make(jobs, 200), infuse.NewMemoryStorage()
		healthyAt := time.Now().Add(5 * time.Minute)
		var mu sync.Mutex
		failed, done := 0, 0
		for range cap(queue) {
			queue <- func(context.Context) error {
				time.Sleep(10 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				if time.Now().Before(healthyAt) {
					failed++
					return errUnavailable
				}
				done++
				return nil
			}
		}
		var all sync.WaitGroup
		for range 2 {
			b := start(t, infuse.Config{Storage: storage})
			all.Go(func() { require.ErrorIs(t, Consume(t.Context(), b, queue), errEmpty) })
		}
		all.Wait()
		require.Equal(t, cap(queue), done, "each job")
		require.LessOrEqual(t, failed, 2*5+2*5, "FailMax failures of each, and two trials a minute")
		require.Less(t, time.Since(healthyAt), 2*time.Minute)
	})
}

func TestSettingsFromTheEnvironment(t *testing.T) {
	t.Setenv("BREAKER", `{"failMax": 10, "resetTimeout": "30s", "dryRun": true}`)
	cfg, err := FromEnvironment()
	require.NoError(t, err)
	require.Equal(t, infuse.Config{FailMax: 10, ResetTimeout: 30 * time.Second, DryRun: true}, cfg)
	t.Setenv("BREAKER", `{"failMax": -1}`)
	_, err = FromEnvironment()
	require.ErrorContains(t, err, "Config.FailMax is -1")
}

// A unit test can set any state, and a minute takes no time.
func TestForcedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, prices := t.Context(), &Prices{breaker: start(t, infuse.Config{}), lookup: func(context.Context) (int, error) { return 250, nil }}
		// The code on the page:
		require.NoError(t, prices.breaker.SetState(ctx, infuse.StateOpen))
		price, err := prices.Price(ctx)
		require.NoError(t, err)
		require.Equal(t, 0, price)     // the fallback
		time.Sleep(time.Minute)        // ResetTimeout, in no time: the test runs in testing/synctest
		price, err = prices.Price(ctx) // the trial
		require.NoError(t, err)
		require.Equal(t, 250, price)
		require.Equal(t, infuse.StateClosed, prices.breaker.State())

		require.NoError(t, prices.breaker.SetState(ctx, infuse.StateHalfOpen)) // the next call is a trial
		prices.lookup = func(context.Context) (int, error) { return 0, errUnavailable }
		_, _ = prices.Price(ctx)
		require.Equal(t, infuse.StateOpen, prices.breaker.State())
	})
}

func TestDryRun(t *testing.T) {
	b, err := NewDryRun(nil)
	require.NoError(t, err)
	defer b.Stop()
	for range 8 {
		require.ErrorIs(t, b.Call(t.Context(), fails), errUnavailable)
	}
	require.Equal(t, infuse.StateOpen, b.State())
	require.EqualValues(t, 5, b.Stats().Calls.Failure)
	require.EqualValues(t, 3, b.Stats().Calls.WouldReject)
}

func TestOpsPage(t *testing.T) {
	breakers, err := infuse.NewGroup(infuse.Config{})
	require.NoError(t, err)
	page := httptest.NewServer(NewOpsPage(breakers, nil, func(r *http.Request) (string, bool) {
		name, _, ok := r.BasicAuth()
		return name, ok
	}))
	defer page.Close()
	for _, test := range []struct {
		user, host string
		status     int
	}{{"", "ops.example.com", http.StatusUnauthorized}, {"alice", "ops.example.com", http.StatusOK}, {"alice", "another.example.com", http.StatusForbidden}} {
		request, err := http.NewRequest(http.MethodGet, page.URL, nil)
		require.NoError(t, err)
		request.Host = test.host
		if test.user != "" {
			request.SetBasicAuth(test.user, "")
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, test.status, response.StatusCode)
	}
}

func TestTenants(t *testing.T) {
	client, err := NewTenantClient(nil, base(func(r *http.Request) (*http.Response, error) {
		if Tenant(r) == "broken" {
			return nil, errUnavailable
		}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
	}))
	require.NoError(t, err)
	defer client.Transport.(*infuse.Transport).Breakers.Stop()
	get := func(tenant string) error {
		r := httptest.NewRequest(http.MethodGet, "http://search.internal", nil)
		r.RequestURI = ""
		r.Header.Set("X-Tenant", tenant)
		_, err := client.Do(r)
		return err
	}
	for range 5 {
		require.ErrorIs(t, get("broken"), errUnavailable)
	}
	require.ErrorIs(t, get("broken"), infuse.ErrOpen)
	require.NoError(t, get("healthy"))
}

// Processes that make one call each open the shared circuit together.
func TestShortLivedProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		ran := 0
		for range 5 {
			require.ErrorIs(t, RunJob(t.Context(), storage, func(context.Context) error { ran++; return errUnavailable }), errUnavailable)
			time.Sleep(10 * time.Minute)
		}
		b := start(t, infuse.Config{Storage: storage})
		require.ErrorIs(t, b.Call(t.Context(), fails), errUnavailable)
		require.ErrorIs(t, b.Call(t.Context(), fails), infuse.ErrOpen, "one failure of this process is enough")
		require.Equal(t, 5, ran)
	})
}

// The record contains the report of a call that ended during the shutdown.
func TestShutdown(t *testing.T) {
	redis0 := redistest.Start(t)
	client := redis.NewClient(&redis.Options{Addr: redis0.Addr()})
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	breakers, err := infuse.NewGroup(infuse.Config{Storage: storage})
	require.NoError(t, err)
	b, err := breakers.Breaker("inventory")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	began := make(chan struct{})
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		_ = b.Call(context.Background(), func(context.Context) error { time.Sleep(200 * time.Millisecond); return errUnavailable })
	})}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, server, breakers, storage, client) }()
	go func() {
		for range 100 {
			if r, err := http.Get("http://" + address); err == nil {
				_ = r.Body.Close()
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	<-began
	cancel()
	require.NoError(t, <-served)
	record, err := infuse.NewRedisStorage(redis0.Client(), infuse.RedisOptions{}).Load(t.Context(), "inventory")
	require.NoError(t, err)
	require.Equal(t, 1, record.Failures)
}

// The rollout in docs/operations.md: one process of a fleet rejects calls.
func TestRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := infuse.NewMemoryStorage()
		dry := start(t, infuse.Config{Storage: storage, CountCalls: true, DryRun: true})
		one := start(t, infuse.Config{Storage: storage, CountCalls: true})
		works := func(context.Context) error { return nil }
		require.NoError(t, one.Override(t.Context(), infuse.Override{State: infuse.StateOpen, Reason: "rollout, step 2", Until: time.Now().Add(5 * time.Minute)}))
		synctest.Wait()
		require.ErrorIs(t, one.Call(t.Context(), works), infuse.ErrOpen)
		require.NoError(t, dry.Call(t.Context(), works))
		require.EqualValues(t, 1, one.Stats().Calls.Rejected)
		require.EqualValues(t, 1, dry.Stats().Calls.WouldReject)

		require.NoError(t, one.Configure(infuse.Config{DryRun: true, CountCalls: true})) // going back
		require.NoError(t, one.Call(t.Context(), works))
		require.Equal(t, infuse.StateOpen, one.State(), "circuits keep their state")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, infuse.StateClosed, one.State())

		require.NoError(t, one.Configure(infuse.Config{CountCalls: true}))
		for range 5 {
			require.ErrorIs(t, one.Call(t.Context(), fails), errUnavailable)
		}
		require.ErrorIs(t, one.Call(t.Context(), works), infuse.ErrOpen)
		require.NoError(t, one.Override(t.Context(), infuse.Override{State: infuse.StateClosed, Reason: "false alarm", Until: time.Now().Add(time.Hour)}))
		require.NoError(t, one.Call(t.Context(), works))
	})
}
