// Fleet shows the purpose of shared state: several processes (children of this program)
// call one service with one shared circuit in Redis. The service fails. The failures of
// all processes together make the circuit suspect; then further failures confirm that, the
// circuit opens, and all processes stop calling. After the open duration, one process runs
// one trial call, and all processes continue. The program checks that, and ends after some
// seconds.
//
//	cd examples/fleet
//	go run .                         # with a miniredis in this program
//	go run . -redis 127.0.0.1:6379   # with a real Redis
package main

import (
	"bufio"
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/infuse-go/infuse"
	"github.com/redis/go-redis/v9"
)

const processes = 5

func main() {
	addr := flag.String("redis", "", "address of a Redis; if empty, the program starts a miniredis")
	service := flag.String("service", "", "internal: run as a child that calls the service at this URL")
	name := flag.String("name", "", "internal: the child's name")
	flag.Parse()
	run := func() error { return runFleet(*addr) }
	if *service != "" {
		run = func() error { return runChild(*name, *addr, *service) }
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

// runChild is one process of the fleet. It calls the service every 50 ms until its
// standard input is closed.
func runChild(name, redisAddr, service string) error {
	client := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: "fleet:"})
	defer storage.Close()
	breaker, err := infuse.New("inventory", infuse.Config{
		ResetTimeout: 1500 * time.Millisecond,
		Storage:      storage,
		Instance:     name,
		Listeners: []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
			fmt.Printf("%s: circuit %s -> %s, by %s\n", name, t.From, t.To, t.Origin)
		}}},
	})
	if err != nil {
		return err
	}
	defer breaker.Stop()

	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	for {
		select {
		case <-over:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		err := breaker.Call(context.Background(), func(ctx context.Context) error {
			if breaker.State() == infuse.StateHalfOpen {
				fmt.Printf("%s runs the trial\n", name)
			}
			return get(ctx, service)
		})
		if err != nil && !errors.Is(err, infuse.ErrOpen) {
			fmt.Printf("%s: %v\n", name, err)
		}
	}
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 500 {
		return errors.New("the service returned " + response.Status)
	}
	return nil
}

// runFleet starts the children, and makes the service fail and recover.
func runFleet(redisAddr string) error {
	if redisAddr == "" {
		mini, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer mini.Close()
		redisAddr = mini.Addr()
	}
	var failing atomic.Bool
	var calls, callsWhileFailing atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		if failing.Load() {
			callsWhileFailing.Add(1)
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer service.Close()

	stop, err := startChildren(redisAddr, service.URL)
	if err != nil {
		return err
	}
	defer stop()
	if err := eventually(func() bool { return calls.Load() >= 4*processes }); err != nil {
		return fmt.Errorf("the fleet did not start calling: %w", err)
	}

	printf("the service fails")
	failing.Store(true)
	time.Sleep(time.Second)
	printf("%d calls have reached the failing service, of about %d without a breaker", callsWhileFailing.Load(), 20*processes)

	printf("the service recovers; a trial call will detect that")
	failing.Store(false)
	before := calls.Load()
	if err := eventually(func() bool { return calls.Load() >= before+4*processes }); err != nil {
		return fmt.Errorf("the fleet did not continue after the service recovered: %w", err)
	}
	printf("all processes continue")
	return nil
}

func startChildren(redisAddr, service string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var ends []func()
	stop = func() {
		for _, end := range ends {
			end()
		}
	}
	for i := range processes {
		end, err := startChild(exec.Command(self,
			"-redis", redisAddr, "-service", service, "-name", fmt.Sprintf("process %d", i+1)))
		if err != nil {
			stop()
			return nil, err
		}
		ends = append(ends, end)
	}
	return stop, nil
}

// startChild starts a process of the fleet, and prints its lines. end closes its standard
// input, as the end of this program would.
func startChild(child *exec.Cmd) (end func(), err error) {
	stdin, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		return nil, err
	}
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			printf("    %s", lines.Text())
		}
	}()
	return func() {
		stdin.Close()
		<-printed
		_ = child.Wait()
	}, nil
}

// eventually waits for a condition, for at most ten seconds.
func eventually(is func() bool) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return nil
		}
	}
	return errors.New("ten seconds have passed")
}

var (
	start    = time.Now()
	printing sync.Mutex
)

func printf(format string, args ...any) {
	printing.Lock()
	defer printing.Unlock()
	fmt.Printf("%5.2fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}
