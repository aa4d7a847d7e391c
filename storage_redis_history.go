package infuse

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// This file has what RedisStorage does for operators: the history of a circuit,
// a list beside its hash, and the circuits that have a record.

var historyScript = redis.NewScript("return redis.pcall('LRANGE', KEYS[1], 0, 49)")

// History implements Historian, in two round trips. It keeps a week of what
// happened last. What cannot be read is left out.
func (s *RedisStorage) History(ctx context.Context, circuit string) ([]Event, error) {
	if err := s.check(circuit); err != nil {
		return nil, err
	}
	key := s.key(circuit)
	k, err := s.read(ctx, key)
	if err != nil {
		return nil, err
	}
	texts, err := historyScript.Run(ctx, s.client, []string{key + historySuffix}).StringSlice()
	if redis.HasErrorPrefix(err, wrongType) {
		return nil, &RecordError{circuit, "has a history that is a key of another type"}
	}
	if err != nil {
		return nil, fmt.Errorf("infuse: redis: %w", err)
	}
	here := time.Now()
	now := k.now(here)
	var all []Event
	for _, text := range texts {
		if e, err := parseEvent(text); err == nil && len(all) < MaxHistory {
			all = append(all, e)
		}
	}
	for i := range all {
		all[i].At = here.Add(all[i].At.Sub(now))
		all[i].Override = all[i].Override.translated(now, here)
	}
	return all, nil
}

// scanner is what listing needs of a client beside redis.UniversalClient.
type scanner interface {
	Scan(ctx context.Context, cursor uint64, match string, count int64) *redis.ScanCmd
}

// Circuits implements Lister. It scans all keys of the server, or of every
// master of a Cluster: for an operator, and not for a program that does so all
// the time.
func (s *RedisStorage) Circuits(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if s.invalid != nil {
			yield("", s.invalid)
			return
		}
		on := func(ctx context.Context, client scanner) error { return s.scan(ctx, client, yield) }
		var err error
		switch client := s.client.(type) {
		case interface {
			ForEachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error
		}:
			// One after the other: yield is not for several goroutines.
			var mu sync.Mutex
			var masters []*redis.Client
			err = client.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
				mu.Lock()
				defer mu.Unlock()
				masters = append(masters, c)
				return nil
			})
			for _, master := range masters {
				if err == nil {
					err = on(ctx, master)
				}
			}
		case scanner:
			err = on(ctx, client)
		default:
			err = fmt.Errorf("infuse: redis: a %T cannot list keys", s.client)
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield("", err)
		}
	}
}

var errStopped = errors.New("the caller has stopped")

func (s *RedisStorage) scan(ctx context.Context, client scanner, yield func(string, error) bool) error {
	before, after := s.prefix+"{", "}"
	match := globEscape(before) + "*" + after
	for cursor := uint64(0); ; {
		keys, next, err := client.Scan(ctx, cursor, match, 1000).Result()
		if err != nil {
			return fmt.Errorf("infuse: redis: %w", err)
		}
		for _, key := range keys {
			name, err := url.QueryUnescape(strings.TrimSuffix(strings.TrimPrefix(key, before), after))
			if err != nil || s.key(name) != key || CheckName(name) != nil {
				continue // a stranger's
			}
			if !yield(name, nil) {
				return errStopped
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// globEscape returns a pattern of Redis's that matches s alone.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(s)
}
