// Service shows everything together: a service that quotes prices calls two upstreams, and
// both may become unhealthy. Run: go run . settings.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
	"github.com/infuse-go/infuse/prominfuse"
)

func main() {
	if len(os.Args) != 2 {
		slog.Error("usage: service settings.json")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		slog.Error("service ended", "error", err)
		os.Exit(1)
	}
}

func run(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	settings := &settings{path: path}
	if err := settings.read(); err != nil {
		return err
	}
	file := settings.current.Load()
	// Stop in reverse order: breakers, storage, client.
	client := redis.NewClient(&redis.Options{Addr: file.Redis})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: "quotes-example:"})
	defer storage.Close()
	settings.storage = storage
	breakers, err := infuse.NewGroupFunc(settings.of)
	if err != nil {
		return err
	}
	defer breakers.Stop()

	q := &quotes{http: newClient(http.DefaultTransport, breakers), inventory: file.Inventory, prices: file.Prices}
	server := &http.Server{Addr: file.Listen, Handler: routes(q, breakers, storage), ReadHeaderTimeout: 5 * time.Second}
	failed, hangUp := make(chan error, 1), make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	go func() { failed <- server.ListenAndServe() }()
	for {
		select {
		case err := <-failed:
			return err
		case <-hangUp:
			if err := settings.reload(breakers); err != nil {
				slog.Error("settings not changed", "error", err)
			}
		case <-ctx.Done(): // requests in progress may use the breakers until they have ended
			draining, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return server.Shutdown(draining)
		}
	}
}

// newClient returns a client that retries outside of the breaker, so that each attempt
// counts, and has its own deadline, including the body. A rejection is not retried.
func newClient(base http.RoundTripper, breakers *infuse.Group) *http.Client {
	client := retryablehttp.NewClient()
	client.HTTPClient = &http.Client{Transport: &infuse.Transport{Base: base, Breakers: breakers}, Timeout: 500 * time.Millisecond}
	client.RetryMax, client.RetryWaitMin, client.RetryWaitMax, client.Logger = 2, 20*time.Millisecond, 200*time.Millisecond, nil
	client.CheckRetry = func(ctx context.Context, response *http.Response, err error) (bool, error) {
		if errors.Is(err, infuse.ErrOpen) {
			return false, err
		}
		return retryablehttp.DefaultRetryPolicy(ctx, response, err)
	}
	return client.StandardClient()
}

func routes(q *quotes, breakers *infuse.Group, storage infuse.Storage) http.Handler {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prominfuse.NewCollector(breakers))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /quote/{item}", func(w http.ResponseWriter, r *http.Request) {
		switch text, err := q.quote(r.Context(), r.PathValue("item")); {
		case err == nil:
			_, _ = io.WriteString(w, text)
		case !infuse.RespondUnavailable(w, err): // a rejection is a 503 with a Retry-After
			http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("/circuits/", ops.Handler(ops.Options{Group: breakers, Storage: storage})) // read-only, because Authorize is not set
	return mux
}

// quotes returns the stock and the price of an item. If the inventory is unavailable, it
// returns an error. If the prices are unavailable, it returns the last known price.
type quotes struct {
	http              *http.Client
	inventory, prices string
	lastKnown         sync.Map
}

func (q *quotes) quote(ctx context.Context, item string) (string, error) {
	stock, err := q.get(ctx, q.inventory, item)
	if err != nil {
		return "", err
	}
	price, err := q.get(ctx, q.prices, item)
	if old, ok := q.lastKnown.Load(item); err != nil && ok {
		slog.Info("using the last known price", "item", item, "error", err)
		price, err = old.(float64), nil
	} else if err == nil {
		q.lastKnown.Store(item, price)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%v of %s, at %v\n", stock, item, price), nil
}

func (q *quotes) get(ctx context.Context, service, item string) (n float64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, service+"/"+url.PathEscape(item), nil)
	if err != nil {
		return 0, err
	}
	response, err := q.http.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, errors.New(response.Status)
	}
	return n, json.NewDecoder(http.MaxBytesReader(nil, response.Body, 1<<20)).Decode(&n)
}
