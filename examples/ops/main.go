// Ops is a fleet to try the ops page with: three processes (children of this program) call
// a service with circuits that they share in Redis. The service fails and recovers
// repeatedly. Each process has an ops page and /metrics.
//
//	cd examples/ops
//	go run .                         # with its own miniredis
//	go run . -redis 127.0.0.1:6379   # with a real one
//
// Then open the page in a browser, force a circuit open, and compare the pages of the
// other processes. Press Ctrl-C to stop.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
)

const processes = 3

// prefix is the key prefix of this example.
const prefix = "ops-example:"

// settings are the flags. This program sets the internal flags for its children.
type settings struct {
	redis            string
	listen           string
	healthy, failing time.Duration

	service string
	name    string
}

func main() {
	var s settings
	flag.StringVar(&s.redis, "redis", "", "the address of a Redis; if empty, the program starts a miniredis")
	flag.StringVar(&s.listen, "listen", "127.0.0.1:8080", "the address of the first process; the others use a free port")
	flag.DurationVar(&s.healthy, "healthy", 15*time.Second, "how long the service is healthy")
	flag.DurationVar(&s.failing, "failing", 20*time.Second, "how long the service fails after that")
	flag.StringVar(&s.service, "service", "", "internal: run as a child that calls the service at this URL")
	flag.StringVar(&s.name, "name", "", "internal: the child's name")
	flag.Parse()
	run := runFleet
	if s.service != "" {
		run = runChild
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		log.Fatal(err)
	}
}

// runFleet starts the children, and switches the service between healthy and failing
// until ctx is done.
func runFleet(ctx context.Context, s settings) error {
	if s.redis == "" {
		mini, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer mini.Close()
		s.redis = mini.Addr()
	}
	service := newService()
	defer service.Close()
	s.service = service.URL

	failed := make(chan error, processes)
	for i := range processes {
		s.name = fmt.Sprint("process-", i+1)
		end, err := startChild(s, failed)
		if err != nil {
			return err
		}
		defer end()
		s.listen = "127.0.0.1:0"
	}
	report("CLI: infuse -redis redis://%s -prefix %s list", s.redis, prefix)
	for {
		for _, failing := range []bool{false, true} {
			report("/inventory is %s", map[bool]string{false: "healthy", true: "failing"}[failing])
			service.failing.Store(failing)
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return err
			case <-time.After(map[bool]time.Duration{false: s.healthy, true: s.failing}[failing]):
			}
		}
	}
}

// service has one part that fails at times, /inventory. 1 % of all other calls fail: the
// baseline error rate.
type service struct {
	*httptest.Server
	failing atomic.Bool
	calls   atomic.Int64
}

func newService() *service {
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/inventory" && s.failing.Load() || s.calls.Add(1)%100 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	return s
}

// startChild starts a process of the fleet and prints its lines. end closes its
// standard input, as a crash of this program would, and waits for it.
func startChild(s settings, failed chan<- error) (end func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	child := exec.Command(self, "-redis", s.redis, "-listen", s.listen, "-service", s.service, "-name", s.name)
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			report("%s: %s", s.name, lines.Text())
		}
		failed <- cmp.Or(child.Wait(), errors.New(s.name+" has ended"))
	}()
	return func() {
		stdin.Close()
		<-ended
	}, nil
}

var printing sync.Mutex

func report(format string, args ...any) {
	printing.Lock()
	defer printing.Unlock()
	fmt.Printf(format+"\n", args...)
}

// untilStdinCloses returns a context that ends with the parent of this program.
func untilStdinCloses(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return ctx
}
