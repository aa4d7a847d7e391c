// Package gobreakerstore keeps the state of gobreaker's shared mode in Redis.
package gobreakerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"
)

// A Store has the four methods of gobreaker.SharedDataStore, over go-redis and
// redsync, with a lock of 5 s. Each breaker needs its own Store: it locks before
// it unlocks.
type Store struct {
	client *redis.Client
	locks  *redsync.Redsync

	mu   sync.Mutex
	held map[string]*redsync.Mutex
}

// New returns a Store that uses the client.
func New(client *redis.Client) *Store {
	return &Store{client: client, locks: redsync.New(goredis.NewPool(client)), held: make(map[string]*redsync.Mutex)}
}

func (s *Store) Lock(name string) error {
	lock := s.locks.NewMutex(name, redsync.WithExpiry(5*time.Second))
	if err := lock.Lock(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = lock
	return nil
}

func (s *Store) Unlock(name string) error {
	s.mu.Lock()
	lock := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if lock == nil {
		return fmt.Errorf("the lock %q is not held", name)
	}
	_, err := lock.Unlock()
	return err
}

func (s *Store) GetData(name string) ([]byte, error) {
	data, err := s.client.Get(context.Background(), name).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return data, err
}

func (s *Store) SetData(name string, data []byte) error {
	return s.client.Set(context.Background(), name, data, 0).Err()
}

// Failures returns the consecutive failures that Redis has for the named breaker.
func (s *Store) Failures(name string) (int, error) {
	data, err := s.GetData("gobreaker:state:" + name)
	if err != nil {
		return 0, err
	}
	var state gobreaker.SharedState
	err = json.Unmarshal(data, &state)
	return int(state.Counts.ConsecutiveFailures), err
}
