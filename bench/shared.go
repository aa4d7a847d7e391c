package main

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

// sharedStore keeps gobreaker's shared state in Redis: the four methods of
// gobreaker.SharedDataStore over go-redis and redsync, with a lock of 5 s. A
// store has one breaker, which locks before it unlocks.
type sharedStore struct {
	client *redis.Client
	locks  *redsync.Redsync

	mu   sync.Mutex
	held map[string]*redsync.Mutex
}

func newSharedStore(client *redis.Client) *sharedStore {
	return &sharedStore{client: client, locks: redsync.New(goredis.NewPool(client)), held: make(map[string]*redsync.Mutex)}
}

func (s *sharedStore) Lock(name string) error {
	lock := s.locks.NewMutex(name, redsync.WithExpiry(5*time.Second))
	if err := lock.Lock(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = lock
	return nil
}

func (s *sharedStore) Unlock(name string) error {
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

func (s *sharedStore) GetData(name string) ([]byte, error) {
	data, err := s.client.Get(context.Background(), name).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return data, err
}

func (s *sharedStore) SetData(name string, data []byte) error {
	return s.client.Set(context.Background(), name, data, 0).Err()
}

// failures is the count that the state of the named breaker has come to.
func (s *sharedStore) failures(name string) (int, error) {
	data, err := s.GetData("gobreaker:state:" + name)
	if err != nil {
		return 0, err
	}
	var state gobreaker.SharedState
	err = json.Unmarshal(data, &state)
	return int(state.Counts.ConsecutiveFailures), err
}
