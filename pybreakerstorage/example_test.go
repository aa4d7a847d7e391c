package pybreakerstorage_test

import (
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/pybreakerstorage"
)

// The Python services contain:
//
//	storage = pybreaker.CircuitRedisStorage("closed", client, namespace="orders")
//	breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30, state_storage=storage)
func Example() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	storage, err := pybreakerstorage.New(client, pybreakerstorage.Options{ResetTimeout: 30 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	orders, err := infuse.New("orders", infuse.Config{FailMax: 5, ResetTimeout: 30 * time.Second, Storage: storage})
	if err != nil {
		log.Fatal(err)
	}
	defer orders.Stop()
}

// Infuse for Python uses database 15, and namespaces of environment and service.
func ExampleNew_infuse() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379", DB: 15})
	storage, err := pybreakerstorage.New(client, pybreakerstorage.Options{
		Layout:    pybreakerstorage.Infuse,
		Namespace: func(circuit string) string { return "development:" + circuit },
	})
	if err != nil {
		log.Fatal(err)
	}
	inventory, err := infuse.New("inventory", infuse.Config{ResetTimeout: 15 * time.Second, Storage: storage})
	if err != nil {
		log.Fatal(err)
	}
	defer inventory.Stop()
}
