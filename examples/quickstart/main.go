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
	"sync"
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

// pace is the time from one call to the next. The circuit stays open for half
// a pace less than ten, so that no call comes just when a trial is due.
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
		says  string
		ill   bool
		calls int
	}{
		{"the server is well", false, 5},
		{"the server falls ill", true, 15},
		{"the server recovers", false, 15},
	} {
		report.phase(phase.says)
		server.ill.Store(phase.ill)
		for range phase.calls {
			report.call(request(client, server))
			<-next.C
		}
	}
	report.end(server.calls.Load())
	return nil
}

// request makes one call, and returns what came of it and whether the server
// has seen it.
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

// report prints a line for calls in a row that ended alike, and one for what
// became of the circuit.
type report struct {
	start time.Time
	calls int64

	mu    sync.Mutex
	moves []string // since the last call: they are told after it, because it caused them

	began  time.Time // of the calls in a row
	row    int
	result string
}

func (r *report) stateChange(b *infuse.Breaker, t infuse.Transition) {
	whose := "circuit"
	if t.Local {
		whose = "this process's circuit"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moves = append(r.moves, fmt.Sprintf("         %s %q: %s -> %s", whose, b.Name(), t.From, t.To))
}

func (r *report) phase(says string) {
	r.flush()
	r.print(time.Now(), "--- "+says)
}

func (r *report) call(result string) {
	r.mu.Lock()
	moves := r.moves
	r.moves = nil
	r.mu.Unlock()
	if result != r.result {
		r.flush()
	}
	if r.row == 0 {
		r.began, r.result = time.Now(), result
	}
	r.calls++
	r.row++
	if len(moves) > 0 {
		r.flush()
	}
	for _, move := range moves {
		r.print(time.Now(), move)
	}
}

// flush prints the calls in a row.
func (r *report) flush() {
	if r.row > 0 {
		r.print(r.began, fmt.Sprintf("%2d GET   %s", r.row, r.result))
	}
	r.row = 0
}

func (r *report) end(reached int64) {
	r.flush()
	fmt.Printf("%d calls, %d reached the server, %d spared\n", r.calls, reached, r.calls-reached)
}

func (r *report) print(at time.Time, line string) {
	fmt.Printf("%4.1fs  %s\n", at.Sub(r.start).Seconds(), line)
}
