package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// watcher sees what becomes of a fleet's circuit, and takes no part in it.
type watcher struct {
	client  *redis.Client
	storage *infuse.RedisStorage
	circuit string
	stop    func()
	over    context.Context // when nobody calls any more: who is suspect then opens for want of calls
	finish  context.CancelFunc

	mu         sync.Mutex
	suspect    bool
	suspicions []time.Time    // when each began
	openings   map[int64]bool // by generation
	moves      []move         // what was seen, in this order
}

// move is another state of the fleet's circuit.
type move struct {
	at time.Time
	to infuse.State
}

func watch(client *redis.Client, circuit string) *watcher {
	w := &watcher{client: client, storage: infuse.NewRedisStorage(client, infuse.RedisOptions{}), circuit: circuit, openings: map[int64]bool{}}
	w.over, w.finish = context.WithCancel(context.Background())
	w.stop = w.storage.Watch(circuit, w.see)
	return w
}

func (w *watcher) see(r infuse.Record) {
	suspect := r.Suspect()
	w.mu.Lock()
	defer w.mu.Unlock()
	if suspect && !w.suspect {
		w.suspicions = append(w.suspicions, r.SuspectAt)
	}
	w.suspect = suspect
	w.moved(&r)
}

// look reads the record.
func (w *watcher) look() {
	r, err := w.storage.Load(context.Background(), w.circuit)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return
	}
	w.moved(&r)
	if r.State != infuse.StateClosed {
		w.suspect = false
	}
}

// moved notes what is new in a record. w.mu is held.
func (w *watcher) moved(r *infuse.Record) {
	if r.Opened > 0 {
		w.openings[r.Opened] = true
	}
	at, before := time.Now(), infuse.StateClosed
	if n := len(w.moves); n > 0 {
		before = w.moves[n-1].to
	}
	switch {
	case r.State == before:
		return
	case r.State == infuse.StateClosed && !r.ClosedAt.IsZero():
		at = r.ClosedAt
	}
	w.moves = append(w.moves, move{at, r.State})
}

// last is when the circuit came to a state last; zero if it did not.
func (w *watcher) last(to infuse.State) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range slices.Backward(w.moves) {
		if m.to == to {
			return m.at
		}
	}
	return time.Time{}
}

// end returns what was seen.
func (w *watcher) end() (suspicions []time.Time, openings int) {
	w.look()
	w.stop()
	w.finish()
	_ = w.storage.Close()
	return w.suspicions, len(w.openings)
}

// since returns the suspicions that began after the given time.
func (w *watcher) since(start time.Time) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.suspicions, func(t time.Time) bool { return t.After(start) })
	if i < 0 {
		return nil
	}
	return slices.Clone(w.suspicions[i:])
}

// busiest is the most that began within one second.
func busiest(times []time.Time) (most int) {
	for i, t := range times {
		n := 0
		for _, u := range times[i:] {
			if u.Sub(t) < time.Second {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

func (w *watcher) movesSince(start time.Time) (all []move) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.moves {
		if m.at.After(start) {
			all = append(all, m)
		}
	}
	return all
}
