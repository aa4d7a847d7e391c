package main

// This file contains the command watch.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/infuse-go/infuse"
)

// watcher prints the events of circuits. After each notification it reads the history
// of the circuit, and prints its new events. It lists the circuits to find new ones.
type watcher struct {
	*job
	listed      time.Time           // start of the last list
	circuits    map[string]*watched // only run uses it
	unavailable time.Time           // since when the storage is unavailable; zero: it is available

	wake chan struct{}

	mu       sync.Mutex
	changed  map[string]bool        // circuits whose history is to be read
	expiries map[string]*time.Timer // of overrides
	ended    bool
}

type watched struct {
	stop    func()
	from    time.Time      // earlier events are not printed
	printed []infuse.Event // the history of the last read
	expired time.Time      // the last expiry that was printed
}

// watch runs until ctx is done, or until its output is closed.
func watch(ctx context.Context, j *job) error {
	w := &watcher{job: j, listed: time.Now(), circuits: make(map[string]*watched), changed: make(map[string]bool), expiries: make(map[string]*time.Timer), wake: make(chan struct{}, 1)}
	defer w.end()
	err := w.run(ctx)
	if ctx.Err() != nil || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func (w *watcher) run(ctx context.Context) error {
	if err := w.find(ctx); err != nil { // at the start, an unavailable Redis is an error
		return err
	}
	if len(w.args) > 0 {
		w.notice("watching the named circuits; press Ctrl-C to stop")
	} else {
		if len(w.circuits) == 0 {
			if err := w.nothingFound(ctx); err != nil {
				w.notice(textOf(err))
			}
		}
		w.notice(fmt.Sprintf("watching all circuits (%d with a record); press Ctrl-C to stop", len(w.circuits)))
	}
	search := time.NewTimer(w.interval)
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
			err = w.read(ctx)
		case <-search.C:
			began := time.Now()
			pause := w.interval
			if err = w.search(ctx); err == nil { // do not search a large Redis all the time
				pause = max(pause, 10*time.Since(began))
			}
			search.Reset(pause)
		}
		var output *outputError
		switch {
		case errors.As(err, &output):
			return output.err
		case ctx.Err() != nil:
			return nil
		case err != nil && w.unavailable.IsZero():
			w.unavailable = time.Now()
			fmt.Fprintf(w.stderr, "infuse: Redis is unavailable: %s\n", textOf(err))
		}
	}
}

// search finds new circuits. After an error it also reads all histories, and reports
// that Redis is available only if both succeed.
func (w *watcher) search(ctx context.Context) error {
	err := w.find(ctx)
	if err != nil || w.unavailable.IsZero() {
		return err
	}
	for name := range w.circuits {
		w.enqueue(name)
	}
	if err := w.read(ctx); err != nil {
		return err
	}
	fmt.Fprintf(w.stderr, "infuse: Redis is available again after %s\n", brief(time.Since(w.unavailable)))
	w.unavailable = time.Time{}
	return nil
}

// clockError is by how much the time of an event may be too early: Redis stores
// milliseconds, and its clock is known only to within one round trip.
const clockError = 10 * time.Millisecond

// outputError is an error of writing to stdout.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }

// find watches the circuits that are new, and stops watching those that have no record
// any more.
func (w *watcher) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	began := time.Now()
	all := w.args
	if len(all) > 0 {
		if _, err := w.storage.Load(ctx, all[0]); err != nil && !isBroken(err) { // is the storage available?
			return err
		}
	} else {
		var err error
		if all, err = names(ctx, w.storage); err != nil {
			return err
		}
	}
	exists := make(map[string]bool, len(all))
	var found []string
	for _, name := range all {
		exists[name] = true
		if w.circuits[name] == nil {
			// The last list did not contain it, so all its events since then are new.
			w.circuits[name] = &watched{from: w.listed.Add(-clockError), stop: w.storage.Watch(name, func(r infuse.Record) { w.received(name, r) })}
			found = append(found, name)
		}
	}
	w.listed = began
	for name, c := range w.circuits {
		if !exists[name] {
			c.stop()
			delete(w.circuits, name)
			w.mu.Lock()
			delete(w.expiries, name)
			w.mu.Unlock()
		}
	}
	return each(len(found), func(i int) error { return w.load(ctx, found[i]) })
}

// load reads the record once, because Watch does not report earlier events.
func (w *watcher) load(ctx context.Context, name string) error {
	r, err := w.storage.Load(ctx, name)
	if isBroken(err) {
		return nil
	}
	if err == nil {
		w.received(name, r)
	}
	return err
}

func isBroken(err error) bool {
	var broken *infuse.RecordError
	return errors.As(err, &broken)
}

// received enqueues the circuit. No process reports the expiry of an override, so the
// record is loaded again then.
func (w *watcher) received(name string, r infuse.Record) {
	w.enqueue(name)
	if r.Override == nil || r.Override.Until.IsZero() {
		return
	}
	next := r.Override.Until
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if timer := w.expiries[name]; timer != nil {
		timer.Stop()
	}
	w.expiries[name] = time.AfterFunc(max(0, time.Until(next))+expiryMargin, func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.timeout)
		defer cancel()
		_ = w.load(ctx, name)
	})
}

// expiryMargin is added to the expiry of an override: more than the usual error of its
// translation to the local clock.
const expiryMargin = 50 * time.Millisecond

// enqueue marks the history of the circuit to be read.
func (w *watcher) enqueue(name string) {
	w.mu.Lock()
	w.changed[name] = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// read reads the enqueued histories, and prints their new events.
func (w *watcher) read(ctx context.Context) error {
	w.mu.Lock()
	var all []string
	for name := range w.changed {
		if w.circuits[name] != nil {
			all = append(all, name)
		}
	}
	clear(w.changed)
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	histories := make([][]infuse.Event, len(all))
	err := each(len(all), func(i int) (err error) {
		histories[i], err = w.storage.History(ctx, all[i])
		if isBroken(err) { // only this history is unreadable
			histories[i], err = w.circuits[all[i]].printed, nil
		}
		return err
	})
	if err != nil {
		w.mu.Lock()
		for _, name := range all { // read again when the storage is available
			w.changed[name] = true
		}
		w.mu.Unlock()
		return err
	}
	var newEvents []event
	for i, name := range all {
		newEvents = append(newEvents, w.circuits[name].newEvents(name, histories[i], time.Now())...)
	}
	slices.SortStableFunc(newEvents, func(a, b event) int { return a.At.Compare(b.At) })
	return w.print(newEvents)
}

// newEvents returns the events that were not printed yet, including expired overrides.
func (c *watched) newEvents(name string, history []infuse.Event, now time.Time) []event {
	n := unprinted(history, c.printed, c.from)
	c.printed = history
	all := eventsOf(name, history)[:n]
	slices.Reverse(all)
	if len(history) == 0 || history[0].Override == nil {
		return all
	}
	last := history[0]
	end := last.Override.Until
	if end.IsZero() || now.Before(end) || end.Before(c.from) || end.Sub(c.expired).Abs() < translation {
		return all
	}
	c.expired = end
	return append(all, event{
		At: *jsonTime(end), Circuit: name, What: isExpiry, From: last.To.String(), To: last.To.String(), By: last.Override.By,
	})
}

// unprinted returns how many of the newest events of a history are neither in printed
// nor older than from. It does not compare exact times: each read translates them to
// the local clock, with a different error.
func unprinted(history, printed []infuse.Event, from time.Time) int {
	n := 0
	for n < len(history) && !(len(printed) > 0 && continues(history[n:], printed)) {
		n++
	}
	if n == len(history) && len(printed) > 0 { // nothing in common: the storage has lost events
		from = printed[0].At.Add(translation)
	}
	for n > 0 && history[n-1].At.Before(from) {
		n--
	}
	return n
}

// translation is the most by which the time of one event may differ between two reads.
const translation = 2 * time.Second

// continues reports whether a history begins with the printed events.
func continues(history, printed []infuse.Event) bool {
	for i := range min(len(history), len(printed)) {
		a, b := &history[i], &printed[i]
		if a.From != b.From || a.To != b.To || a.Manual != b.Manual || a.By != b.By || a.Cause != b.Cause ||
			(a.Override == nil) != (b.Override == nil) || a.At.Sub(b.At).Abs() > translation {
			return false
		}
	}
	return true
}

func (w *watcher) print(events []event) error {
	for i := range events {
		if err := w.printOne(&events[i]); err != nil {
			return &outputError{err}
		}
	}
	return nil
}

func (w *watcher) printOne(e *event) error {
	if w.json {
		return writeJSON(w.stdout, e, "")
	}
	what, why := e.line(time.Now())
	_, err := fmt.Fprintf(w.stdout, "%s  %-24s  %-21s  %s\n", e.At.Local().Format(eventTime), cut(quoted(e.Circuit), 48), what, why)
	return err
}

func (w *watcher) end() {
	w.mu.Lock()
	w.ended = true
	for _, timer := range w.expiries {
		timer.Stop()
	}
	w.mu.Unlock()
	for _, c := range w.circuits {
		c.stop()
	}
}
