// Quickstart shows the main job: an http.Client with Infuse's Transport calls a
// real server on this machine, which falls ill and recovers. While the circuit
// is open the server is not called at all; then one trial finds out that it is
// well again. The program prints what happens, and ends by itself in seconds.
//
//	go run ./examples/quickstart                         # state in memory
//	go run ./examples/quickstart -redis 127.0.0.1:6379   # state in Redis: start it twice
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/redis/go-redis/v9"
)

func main() {
	addr := flag.String("redis", "", "keep the circuit in the Redis at this address; in memory if empty")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}

func run(redisAddr string) error {
	server := newServer()
	defer server.Close()

	config := infuse.Config{
		FailMax:      3,
		ResetTimeout: time.Second,
		Listeners:    []*infuse.Listener{{StateChange: printStateChange}},
	}
	if redisAddr != "" {
		client := redis.NewClient(&redis.Options{Addr: redisAddr})
		defer client.Close()
		storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: "quickstart:"})
		defer storage.Close()
		config.Storage = storage
	}
	breakers, err := infuse.NewGroup(config)
	if err != nil {
		return err
	}
	defer breakers.Stop()
	client := &http.Client{Transport: &infuse.Transport{
		Breakers: breakers,
		Circuit:  func(*http.Request) string { return "inventory" },
	}}

	for _, phase := range []struct {
		says string
		ill  bool
		long time.Duration
	}{
		{"the server is well", false, 500 * time.Millisecond},
		{"the server falls ill", true, 1500 * time.Millisecond},
		{"the server recovers", false, 1500 * time.Millisecond},
	} {
		printf("--- %s", phase.says)
		server.ill.Store(phase.ill)
		for end := time.Now().Add(phase.long); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			request(client, server)
		}
	}
	printf("--- done: the server was called %d times", server.calls.Load())
	return nil
}

// request makes one call, and prints what came of it and whether the server
// has seen it.
func request(client *http.Client, server *server) {
	before := server.calls.Load()
	response, err := client.Get(server.URL)
	reached := "reached the server"
	if server.calls.Load() == before {
		reached = "was never sent"
	}
	var open *infuse.OpenError
	switch {
	case errors.As(err, &open):
		printf("GET  rejected, circuit %s      %s", open.State, reached)
	case err != nil:
		printf("GET  %v", err)
	default:
		response.Body.Close()
		printf("GET  %-28s %s", response.Status, reached)
	}
}

// server is the service that is called: it answers 503 while it is ill.
type server struct {
	*httptest.Server
	ill   atomic.Bool
	calls atomic.Int64
}

func newServer() *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.calls.Add(1)
		if s.ill.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	return s
}

func printStateChange(b *infuse.Breaker, t infuse.Transition) {
	whose := "the circuit"
	if t.Local {
		whose = "this process's circuit"
	}
	printf("     %s %q: %s -> %s", whose, b.Name(), t.From, t.To)
}

var start = time.Now()

func printf(format string, args ...any) {
	fmt.Printf("%5.2fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}
