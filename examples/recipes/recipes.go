// Package recipes contains the code in docs/recipes.md. Its tests run that code.
package recipes

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
)

// NewClient returns a client for upstreams with different settings.
func NewClient(storage infuse.Storage) (*http.Client, error) {
	settings := map[string]infuse.Config{
		"search.internal": {SlowCall: time.Second},
		"prices.internal": {FailMax: 10},
	}
	breakers, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
		cfg := settings[circuit]
		cfg.Storage = storage
		return cfg
	})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &infuse.Transport{Breakers: breakers}}, nil
}

// Prices looks up prices.
type Prices struct {
	breaker   *infuse.Breaker
	lookup    func(context.Context) (int, error)
	lastKnown int
}

// Price returns the price, or the last known price if the call fails.
func (p *Prices) Price(ctx context.Context) (int, error) {
	price, err := infuse.Do(ctx, p.breaker, p.lookup)
	if err != nil { // or only for errors.Is(err, infuse.ErrOpen)
		return p.lastKnown, nil
	}
	p.lastKnown = price
	return price, nil
}

// NewTryClient returns a client for a retrier: each attempt has a deadline.
func NewTryClient() *http.Client {
	return &http.Client{Transport: &infuse.Transport{}, Timeout: time.Second}
}

// CallWithin makes a call with a deadline.
func CallWithin(ctx context.Context, breaker *infuse.Breaker, call func(context.Context) error) error {
	return breaker.Call(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return call(ctx)
	})
}

// NewDatabaseBreaker returns a breaker for a database.
func NewDatabaseBreaker(storage infuse.Storage) (*infuse.Breaker, error) {
	return infuse.New("orders-db", infuse.Config{
		Storage: storage,
		Exclude: []func(error) bool{infuse.Answered},
	})
}

// CountOrders runs a query.
func CountOrders(ctx context.Context, breaker *infuse.Breaker, db *sql.DB) (int, error) {
	return infuse.Do(ctx, breaker, func(ctx context.Context) (n int, err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = db.QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&n)
		return n, err
	})
}

// Queue is a queue of jobs.
type Queue interface {
	Receive(context.Context) (Job, error)
	PutBack(Job)
}

// Job is the work of a consumer.
type Job func(context.Context) error

// Consume runs jobs until ctx is done.
func Consume(ctx context.Context, breaker *infuse.Breaker, queue Queue) error {
	for {
		if err := breaker.Wait(ctx); err != nil {
			return err
		}
		job, err := queue.Receive(ctx)
		if err != nil {
			return err
		}
		if err := breaker.Call(ctx, job); err != nil {
			queue.PutBack(job)
		}
	}
}

// FromEnvironment reads settings from a variable with JSON.
func FromEnvironment() (infuse.Config, error) {
	var settings infuse.Settings
	if err := json.Unmarshal([]byte(os.Getenv("BREAKER")), &settings); err != nil {
		return infuse.Config{}, err
	}
	cfg := settings.Config()
	return cfg, cfg.Validate()
}

// NewDryRun returns a breaker that rejects nothing.
func NewDryRun(storage infuse.Storage) (*infuse.Breaker, error) {
	return infuse.New("inventory", infuse.Config{Storage: storage, DryRun: true, CountCalls: true})
}

// NewOpsPage returns an ops page that only users can read and change.
func NewOpsPage(breakers *infuse.Group, storage infuse.Storage, user func(*http.Request) (name string, ok bool)) http.Handler {
	page := ops.Handler(ops.Options{Group: breakers, Storage: storage, Authorize: user, Hosts: []string{"ops.example.com"}})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := user(r); !ok { // Authorize protects changes only
			http.Error(w, "sign in first", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})
}

// Ready is a readiness endpoint.
func Ready(isShuttingDown func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if isShuttingDown() { // and no circuit
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

// Tenant returns the tenant of a request.
func Tenant(r *http.Request) string { return r.Header.Get("X-Tenant") }

// NewTenantClient returns a client with a circuit for each tenant.
func NewTenantClient(storage infuse.Storage, base http.RoundTripper) (*http.Client, error) {
	breakers, err := infuse.NewGroup(infuse.Config{Storage: storage, MaxCircuits: 10_000})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &infuse.Transport{
		Base: base, Breakers: breakers,
		Circuit: func(r *http.Request) string { return r.URL.Host + " " + Tenant(r) },
	}}, nil
}

// RunJob is a process that makes one call.
func RunJob(ctx context.Context, storage infuse.Storage, job func(context.Context) error) error {
	breaker, err := infuse.New("inventory", infuse.Config{Storage: storage})
	if err != nil {
		return err
	}
	defer breaker.Stop() // waits for reports in flight, StorageTimeout at most
	return breaker.Call(ctx, job)
}

// Serve serves until a signal, and loses no report at the end.
func Serve(ctx context.Context, server *http.Server, breakers *infuse.Group, storage *infuse.RedisStorage, client interface{ Close() error }) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	go func() { _ = server.ListenAndServe() }()
	<-ctx.Done()
	err := server.Shutdown(context.Background()) // 1. no request uses a breaker any more
	breakers.Stop()                              // 2. waits for reports in flight
	return errors.Join(err, storage.Close(), client.Close())
}
