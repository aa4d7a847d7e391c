package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Calls of one circuit that all fail at the same time.

func atOnce(size sizes, r *report) error {
	server, err := redistest.Launch()
	if err != nil {
		return err
	}
	defer server.Close()
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	defer storage.Close()
	rounds := (size.rounds + 2) / 3
	r.title = "Calls that fail at the same time"
	r.intro = fmt.Sprintf("So many goroutines wait in calls of one breaker. Then all calls fail at once, and the time is measured until the last one has returned, divided by the calls: µs a call, medians of %d rounds in turns. "+
		"The row of a bare call is the time that the goroutines need without a breaker. With Redis, each failing call waits until Redis has counted it.", rounds)
	compared := []string{infuseName, infuseName + ", Redis", eapacheName, gobreakerName}
	all := slices.DeleteFunc(subjects(storage), func(s subject) bool { return !s.floor && !slices.Contains(compared, s.name) })
	t := table{head: []string{""}}
	for _, n := range size.atOnce {
		t.head = append(t.head, whole(int64(n))+strings.TrimSuffix(" calls", map[bool]string{true: "s"}[n == 1]))
	}
	t.head = append(t.head, "most beside fewest")
	found := make([][][]float64, len(all))
	for i := range all {
		found[i] = make([][]float64, len(size.atOnce))
	}
	for round := range rounds {
		progress("calls that fail at the same time, round %d", round+1)
		for i, s := range all {
			for j, n := range size.atOnce {
				took, err := failAtOnce(s, n)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				found[i][j] = append(found[i][j], float64(took.Nanoseconds())/1000/float64(n))
			}
		}
	}
	for i, s := range all {
		row := []string{s.name}
		for j := range size.atOnce {
			row = append(row, number(median(found[i][j])))
		}
		last := len(size.atOnce) - 1
		t.rows = append(t.rows, append(row, "× "+number(median(found[i][last])/median(found[i][0]))))
	}
	r.tables = []table{t}
	return nil
}

// failAtOnce returns how long it takes until the calls have returned.
func failAtOnce(s subject, calls int) (time.Duration, error) {
	b, err := s.start(1_000_000) // it never opens
	if err != nil {
		return 0, err
	}
	defer b.stop()
	var inside atomic.Int64
	release := make(chan struct{})
	fail := func() error {
		inside.Add(1)
		<-release
		return errUnhealthy
	}
	call := b.call(work{
		plain: fail,
		ctx:   func(context.Context) error { return fail() },
		value: func() (any, error) { return nil, fail() },
	})
	var all sync.WaitGroup
	for range calls {
		all.Go(func() { _ = call() })
	}
	if err := waiting.For(func() bool { return inside.Load() == int64(calls) }); err != nil {
		return 0, err
	}
	began := time.Now()
	close(release)
	all.Wait()
	return time.Since(began), nil
}
