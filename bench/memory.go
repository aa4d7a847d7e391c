package main

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What circuits take, in a process and in Redis.

// footprint is what one of many circuits takes.
type footprint struct{ bytes, goroutines float64 }

// measureFootprint makes so many circuits, healthy and used once.
func measureFootprint(s subject, circuits int) (footprint, error) {
	bytes, goroutines := inUse()
	breakers := make([]breaker, circuits)
	start := s.start
	if s.many != nil {
		start = s.many()
	}
	for i := range breakers {
		b, err := start(fewFailures)
		if err != nil {
			return footprint{}, fmt.Errorf("%s: %w", s.name, err)
		}
		_ = b.call(healthy)()
		breakers[i] = b
	}
	bytesAfter, goroutinesAfter := inUse()
	runtime.KeepAlive(start) // a Group is part of its circuits
	var all sync.WaitGroup
	for chunk := range slices.Chunk(breakers, 100) {
		all.Go(func() {
			for _, b := range chunk {
				b.stop()
			}
		})
	}
	all.Wait()
	n := float64(circuits)
	return footprint{max(0, bytesAfter-bytes) / n, float64(goroutinesAfter-goroutines) / n}, nil
}

// inUse is the memory that is reachable, stacks and all, once what has ended is gone.
func inUse() (bytes float64, goroutines int) {
	var m runtime.MemStats
	for range 3 { // also what finalizers and pools hold on to
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
	}
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
}

// keyspace is what circuits take in Redis.
type keyspace struct {
	what  string
	keys  int64
	bytes float64       // of the server's memory, for each circuit
	life  time.Duration // until Redis forgets a circuit that nobody changes
}

// measureKeyspace opens so many circuits, and closes them.
func measureKeyspace(circuits int) ([]keyspace, error) {
	server, err := redistest.Launch()
	if err != nil {
		return nil, err
	}
	defer server.Close()
	client := server.Client()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()
	if _, err := storage.Load(ctx, "first"); err != nil { // the script is loaded
		return nil, err
	}
	before, err := usedMemory(client)
	if err != nil {
		return nil, err
	}
	var found []keyspace
	look := func(what string) error {
		keys, err1 := client.DBSize(ctx).Result()
		used, err2 := usedMemory(client)
		key, err3 := client.RandomKey(ctx).Result()
		life, err4 := client.PTTL(ctx, key).Result()
		found = append(found, keyspace{what, keys, max(0, used-before) / float64(circuits), life})
		return errors.Join(err1, err2, err3, err4)
	}
	for number, step := range []struct {
		what string
		to   infuse.State
	}{{"open", infuse.StateOpen}, {"closed again", infuse.StateClosed}} {
		if err := moveAll(storage, circuits, step.to, uint64(number+1)); err != nil {
			return nil, err
		}
		if err := look(step.what); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// moveAll sets the state of every circuit. Those that open are ready for a trial after 1 s.
func moveAll(storage infuse.Storage, circuits int, to infuse.State, number uint64) error {
	const workers = 8
	limits := infuse.Limits{FailMax: fewFailures, ResetTimeout: time.Second, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Second}
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < circuits && errs[w] == nil; i += workers {
				_, _, errs[w] = storage.Apply(ctx, fmt.Sprintf("service-%d.example", i), infuse.Change{
					Source: "bench", Number: number, By: "bench", Manual: &infuse.ManualState{To: to}, Limits: limits,
				})
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func usedMemory(client *redis.Client) (float64, error) {
	info, err := client.Info(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "used_memory:"); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("no used_memory in %q", info)
}
