package main

// This file contains a process of the fleet.

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
	"github.com/infuse-go/infuse/prominfuse"
)

// runChild is one process of the fleet. Like a service with monitoring and manual changes,
// it has a group with counters, an ops page and a collector.
func runChild(ctx context.Context, s settings) error {
	// Ctrl-C also signals the children. They ignore it, and end with their parent, which
	// prints their last lines.
	ctx = untilStdinCloses(context.WithoutCancel(ctx))

	client := redis.NewClient(&redis.Options{Addr: s.redis})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: prefix})
	defer storage.Close()
	transitions := new(prominfuse.Transitions)
	group, err := infuse.NewGroup(infuse.Config{
		ResetTimeout: 5 * time.Second,
		Storage:      storage,
		Instance:     s.name,
		CountCalls:   true,
		Listeners:    []*infuse.Listener{transitions.Listener(), {StateChange: printTransition}},
	})
	if err != nil {
		return err
	}
	defer group.Stop()

	registry := prometheus.NewRegistry()
	registry.MustRegister(prominfuse.NewCollector(group, prominfuse.WithTransitions(transitions)))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/infuse/", ops.Handler(ops.Options{Group: group, Storage: storage, Authorize: authorize}))
	mux.Handle("/{$}", http.RedirectHandler("/infuse/", http.StatusFound))
	stop, err := serve(s.listen, mux)
	if err != nil {
		return err
	}
	defer stop()

	http.DefaultClient = &http.Client{
		Timeout:   5 * time.Second,
		Transport: &infuse.Transport{Breakers: group, Circuit: func(r *http.Request) string { return r.URL.Path[1:] }},
	}
	var callers sync.WaitGroup
	for _, path := range []string{"/inventory", "/prices"} {
		callers.Go(func() { call(ctx, s.service+path) })
	}
	callers.Wait()
	return nil
}

// authorize returns the person who changes a circuit. This example listens on the loopback
// interface only, so that is the user who started it. A service would check its sessions,
// and allow changes only with one.
func authorize(*http.Request) (name string, ok bool) {
	if u, err := user.Current(); err == nil {
		return u.Username, true
	}
	return "unknown user", true
}

func printTransition(b *infuse.Breaker, t infuse.Transition) {
	by := t.Origin
	if by == "" {
		by = "time"
	}
	fmt.Printf("%s: %s -> %s, by %s\n", b.Name(), t.From, t.To, by)
}

// serve starts the server, and prints its addresses.
func serve(address string, handler http.Handler) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	fmt.Printf("ops page http://%s/infuse/, metrics http://%[1]s/metrics\n", listener.Addr())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return func() { _ = server.Close() }, nil
}

// call calls the service ten times a second until ctx is done.
func call(ctx context.Context, url string) {
	next := time.NewTicker(100 * time.Millisecond)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		if response, err := http.Get(url); err == nil { // failures are on the ops page
			_ = response.Body.Close()
		}
	}
}
