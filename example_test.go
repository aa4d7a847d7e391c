package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// An unhealthy server is called until the circuit opens, and then not any more.
func Example() {
	calls := 0
	unhealthy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer unhealthy.Close()

	client := &http.Client{Transport: &infuse.Transport{}}
	for range 100 {
		response, err := client.Get(unhealthy.URL)
		if errors.Is(err, infuse.ErrOpen) {
			continue // failed before it was sent
		}
		if err == nil {
			response.Body.Close()
		}
	}
	fmt.Println("calls that reached the server:", calls)
	// Output: calls that reached the server: 5
}

// A fleet shares its circuits through Redis.
func ExampleNewRedisStorage() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()

	breakers, err := infuse.NewGroup(infuse.Config{Storage: storage, ResetTimeout: 10 * time.Second})
	if err != nil {
		panic(err)
	}
	defer breakers.Stop()
	_ = &http.Client{Transport: &infuse.Transport{Breakers: breakers}}
}

func ExampleBreaker_Call() {
	breaker, err := infuse.New("inventory", infuse.Config{FailMax: 2})
	if err != nil {
		panic(err)
	}
	defer breaker.Stop()

	unhealthy := errors.New("inventory is unhealthy")
	for range 3 {
		err := breaker.Call(context.Background(), func(context.Context) error { return unhealthy })
		fmt.Println(err == unhealthy, errors.Is(err, infuse.ErrOpen), breaker.State())
	}
	// Output:
	// true false closed
	// true false open
	// false true open
}

func ExampleDo() {
	breaker, err := infuse.New("inventory", infuse.Config{})
	if err != nil {
		panic(err)
	}
	defer breaker.Stop()

	stock, err := infuse.Do(context.Background(), breaker, func(context.Context) (int, error) {
		return 42, nil
	})
	fmt.Println(stock, err)
	// Output: 42 <nil>
}

// A call that a func cannot hold, such as a stream, has two ends.
func ExampleBreaker_Acquire() {
	breaker, err := infuse.New("inventory", infuse.Config{})
	if err != nil {
		panic(err)
	}
	defer breaker.Stop()

	permit, err := breaker.Acquire(context.Background())
	if err != nil {
		fmt.Println("rejected:", err)
		return
	}
	// … the stream runs, and ends …
	permit.Done(nil)
	fmt.Println(breaker.State())
	// Output: closed
}

// A service that starts has its callers try it at once.
func ExampleAnnounce() {
	storage := infuse.NewMemoryStorage() // a RedisStorage, for a fleet
	caller, err := infuse.New("inventory", infuse.Config{Storage: storage})
	if err != nil {
		panic(err)
	}
	defer caller.Stop()
	_ = caller.SetState(context.Background(), infuse.StateOpen) // the service was unhealthy

	_ = infuse.Announce(context.Background(), storage, "inventory", infuse.StateHalfOpen)
	fmt.Println(caller.State())
	// Output: half-open
}

// A call's outcome need not be an error: here a slow answer is a failure, too.
func ExamplePermit_Settle() {
	breaker, err := infuse.New("search", infuse.Config{FailMax: 1})
	if err != nil {
		panic(err)
	}
	defer breaker.Stop()

	permit, err := breaker.Acquire(context.Background())
	if err != nil {
		panic(err)
	}
	hits, took := 17, 8*time.Second // … what the search came to …
	if took > 5*time.Second {
		permit.Settle(infuse.OutcomeFailure)
	} else {
		permit.Settle(infuse.OutcomeSuccess)
	}
	fmt.Println(hits, breaker.State())
	// Output: 17 open
}

// An operator takes a service out manually, for the whole fleet.
func ExampleBreaker_SetState() {
	breaker, err := infuse.New("inventory", infuse.Config{ResetTimeout: time.Hour})
	if err != nil {
		panic(err)
	}
	defer breaker.Stop()

	if err := breaker.SetState(context.Background(), infuse.StateOpen); err != nil {
		fmt.Println(err) // the storage has not confirmed it
	}
	err = breaker.Call(context.Background(), func(context.Context) error { return nil })
	fmt.Println(errors.Is(err, infuse.ErrOpen))
	// Output: true
}

// Some services deserve settings of their own.
func ExampleNewGroupFunc() {
	breakers, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
		cfg := infuse.Config{FailMax: 10}
		if circuit == "payments" {
			cfg.FailMax = 2
		}
		return cfg
	})
	if err != nil {
		panic(err)
	}
	defer breakers.Stop()

	for _, name := range []string{"payments", "search"} {
		breaker, err := breakers.Breaker(name)
		if err != nil {
			panic(err)
		}
		for range 5 {
			_ = breaker.Call(context.Background(), func(context.Context) error { return errors.New("failed") })
		}
	}
	states := make(map[string]infuse.State)
	for breaker := range breakers.All() {
		states[breaker.Name()] = breaker.State()
	}
	fmt.Println(states)
	// Output: map[payments:open search:closed]
}
