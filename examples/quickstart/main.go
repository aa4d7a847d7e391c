// Quickstart shows the main use: an http.Client with Infuse's Transport calls a server on
// this machine, which fails and recovers. While the circuit is open, no request is sent.
// Then one trial call succeeds, and the circuit closes. The program prints the calls and
// transitions, and ends after some seconds.
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/redis/go-redis/v9"
)

func main() {
	addr := flag.String("redis", "", "address of a Redis to keep the circuit in; in memory if empty")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}

// pace is the time between two calls. The circuit stays open for 9.5 paces, so that no
// call comes at the very moment when it becomes ready for a trial.
const pace = 100 * time.Millisecond

func run(redisAddr string) error {
	server := newServer()
	defer server.Close()

	report := &report{start: time.Now()}
	config := infuse.Config{
		FailMax:      3,
		ResetTimeout: 10*pace - pace/2,
		Listeners:    []*infuse.Listener{{StateChange: report.stateChange}},
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

	next := time.NewTicker(pace)
	defer next.Stop()
	for _, phase := range []struct {
		text    string
		failing bool
		calls   int
	}{
		{"the server is healthy", false, 5},
		{"the server fails", true, 15},
		{"the server recovers", false, 15},
	} {
		report.phase(phase.text)
		server.failing.Store(phase.failing)
		for range phase.calls {
			report.call(request(client, server))
			<-next.C
		}
	}
	report.end(server.calls.Load())
	return nil
}

// request makes one call, and returns its result and whether the server received it.
func request(client *http.Client, server *server) string {
	before := server.calls.Load()
	response, err := client.Get(server.URL)
	reached := "reached the server"
	if server.calls.Load() == before {
		reached = "never sent"
	}
	var open *infuse.OpenError
	switch {
	case errors.As(err, &open):
		return fmt.Sprintf("%-24s %s", "rejected: circuit "+open.State.String(), reached)
	case err != nil:
		return err.Error()
	}
	response.Body.Close()
	return fmt.Sprintf("%-24s %s", response.Status, reached)
}

// server is a service that returns 503 while it is failing.
type server struct {
	*httptest.Server
	failing atomic.Bool
	calls   atomic.Int64
}

func newServer() *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.calls.Add(1)
		if s.failing.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	return s
}

// report prints one line for consecutive calls with the same result, and one for each
// transition.
type report struct {
	start time.Time
	calls int64

	mu          sync.Mutex
	transitions []string // of the current call: printed after it

	began  time.Time // first of the consecutive calls
	count  int       // number of consecutive calls
	result string
}

func (r *report) stateChange(b *infuse.Breaker, t infuse.Transition) {
	kind := "circuit"
	if t.Local {
		kind = "local circuit"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.transitions = append(r.transitions, fmt.Sprintf("         %s %q: %s -> %s", kind, b.Name(), t.From, t.To))
}

func (r *report) phase(text string) {
	r.flush()
	r.print(time.Now(), "--- "+text)
}

func (r *report) call(result string) {
	r.mu.Lock()
	transitions := r.transitions
	r.transitions = nil
	r.mu.Unlock()
	if result != r.result {
		r.flush()
	}
	if r.count == 0 {
		r.began, r.result = time.Now(), result
	}
	r.calls++
	r.count++
	if len(transitions) > 0 {
		r.flush()
	}
	for _, transition := range transitions {
		r.print(time.Now(), transition)
	}
}

// flush prints the consecutive calls.
func (r *report) flush() {
	if r.count > 0 {
		r.print(r.began, fmt.Sprintf("%2d GET   %s", r.count, r.result))
	}
	r.count = 0
}

func (r *report) end(reached int64) {
	r.flush()
	fmt.Printf("%d calls, %d reached the server, %d rejected\n", r.calls, reached, r.calls-reached)
}

func (r *report) print(at time.Time, line string) {
	fmt.Printf("%4.1fs  %s\n", at.Sub(r.start).Seconds(), line)
}
