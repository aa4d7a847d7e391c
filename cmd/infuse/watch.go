package main

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

// watcher prints the events of circuits. When the storage notifies of a circuit, its
// history is read, and new events in it are printed. New circuits are found by
// listing them.
type watcher struct {
	*job
	looked      time.Time           // when the circuits were listed last
	circuits    map[string]*watched // of the goroutine that runs
	unavailable time.Time           // since when the storage is unavailable; zero if it is available

	wake chan struct{}

	mu     sync.Mutex
	news   map[string]bool // circuits whose history is to be read
	alarms map[string]*time.Timer
	ended  bool
}

type watched struct {
	stop    func()
	from    time.Time      // what happened before is not printed
	printed []infuse.Event // the history as it was read last
	over    time.Time      // the end of an override whose expiry was printed last
}

// watch runs until ctx is done, or until its output is closed.
func watch(ctx context.Context, j *job) error {
	w := &watcher{job: j, looked: time.Now(), circuits: make(map[string]*watched), news: make(map[string]bool), alarms: make(map[string]*time.Timer), wake: make(chan struct{}, 1)}
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
		fmt.Fprintf(w.stderr, "infuse: watching %d circuits; ^C ends it\n", len(w.circuits))
	} else {
		if len(w.circuits) == 0 {
			if err := w.nothingFound(ctx); err != nil {
				w.notice(textOf(err))
			}
		}
		fmt.Fprintf(w.stderr, "infuse: watching all circuits, %d have a record now; ^C ends it\n", len(w.circuits))
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

// search looks for new circuits. After a failure it reads all histories again:
// only if that succeeds, too, nothing fails any more.
func (w *watcher) search(ctx context.Context) error {
	err := w.find(ctx)
	if err != nil || w.unavailable.IsZero() {
		return err
	}
	for name := range w.circuits {
		w.note(name)
	}
	if err := w.read(ctx); err != nil {
		return err
	}
	fmt.Fprintf(w.stderr, "infuse: Redis is available again after %s\n", brief(time.Since(w.unavailable)))
	w.unavailable = time.Time{}
	return nil
}

// clockError is how much earlier the time of an event may be than it was: Redis keeps
// milliseconds, and its clock is known to a round trip.
const clockError = 10 * time.Millisecond

// outputError is one of writing to stdout.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }

// find looks for circuits to watch. Those that have no record any more are let
// go; they are found again.
func (w *watcher) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	began := time.Now()
	all := w.args
	if len(all) > 0 {
		if _, err := w.storage.Load(ctx, all[0]); err != nil && !isBroken(err) { // is it there?
			return err
		}
	} else {
		var err error
		if all, err = names(ctx, w.storage); err != nil {
			return err
		}
	}
	there := make(map[string]bool, len(all))
	var found []string
	for _, name := range all {
		there[name] = true
		if w.circuits[name] == nil {
			// It was not there at the last look: all of its events since are news.
			w.circuits[name] = &watched{from: w.looked.Add(-clockError), stop: w.storage.Watch(name, func(r infuse.Record) { w.received(name, r) })}
			found = append(found, name)
		}
	}
	w.looked = began
	for name, c := range w.circuits {
		if !there[name] {
			c.stop()
			delete(w.circuits, name)
			w.mu.Lock()
			delete(w.alarms, name)
			w.mu.Unlock()
		}
	}
	return each(len(found), func(i int) error { return w.load(ctx, found[i]) })
}

// load reads the record once: Watch does not notify of earlier events.
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

// received gets a new record. An override may end by time alone, of which no
// process notifies: the record is loaded again then.
func (w *watcher) received(name string, r infuse.Record) {
	w.note(name)
	if r.Override == nil || r.Override.Until.IsZero() {
		return
	}
	next := r.Override.Until
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if alarm := w.alarms[name]; alarm != nil {
		alarm.Stop()
	}
	w.alarms[name] = time.AfterFunc(max(0, time.Until(next))+late, func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.timeout)
		defer cancel()
		_ = w.load(ctx, name)
	})
}

// late is how long after its time a change is looked for: longer than what its
// translation to this process's clock is usually wrong by.
const late = 50 * time.Millisecond

// note has the circuit's history read.
func (w *watcher) note(name string) {
	w.mu.Lock()
	w.news[name] = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// read reads the histories of which there is news, and prints what is new in them.
func (w *watcher) read(ctx context.Context) error {
	w.mu.Lock()
	var all []string
	for name := range w.news {
		if w.circuits[name] != nil {
			all = append(all, name)
		}
	}
	clear(w.news)
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	histories := make([][]infuse.Event, len(all))
	err := each(len(all), func(i int) (err error) {
		histories[i], err = w.storage.History(ctx, all[i])
		if isBroken(err) { // only this circuit's history cannot be read
			histories[i], err = w.circuits[all[i]].printed, nil
		}
		return err
	})
	if err != nil {
		w.mu.Lock()
		for _, name := range all { // read again when it is back
			w.news[name] = true
		}
		w.mu.Unlock()
		return err
	}
	var fresh []event
	for i, name := range all {
		fresh = append(fresh, w.circuits[name].fresh(name, histories[i], time.Now())...)
	}
	slices.SortStableFunc(fresh, func(a, b event) int { return a.At.Compare(b.At) })
	return w.print(fresh)
}

// fresh returns what of a history was not printed yet, and the end of an override.
func (c *watched) fresh(name string, history []infuse.Event, now time.Time) []event {
	n := unprinted(history, c.printed, c.from)
	c.printed = history
	all := eventsOf(name, history)[:n]
	slices.Reverse(all)
	if len(history) == 0 || history[0].Override == nil {
		return all
	}
	last := history[0]
	end := last.Override.Until
	if end.IsZero() || now.Before(end) || end.Before(c.from) || end.Sub(c.over).Abs() < translation {
		return all
	}
	c.over = end
	return append(all, event{
		At: *some(end), Circuit: name, What: isExpiry, From: last.To.String(), To: last.To.String(), By: last.Override.By,
	})
}

// unprinted returns how many of the newest events of a history are not in what
// was printed of it, nor older than from. Their times cannot decide: each read
// translates them to this process's clock anew.
func unprinted(history, printed []infuse.Event, from time.Time) int {
	n := 0
	for n < len(history) && !(len(printed) > 0 && continues(history[n:], printed)) {
		n++
	}
	if n == len(history) && len(printed) > 0 { // it has nothing in common with what was printed: the storage has lost some
		from = printed[0].At.Add(translation)
	}
	for n > 0 && history[n-1].At.Before(from) {
		n--
	}
	return n
}

// translation is by how much the time of one event may differ between two reads.
const translation = 2 * time.Second

// continues reports whether a history begins with what was printed.
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
	for _, alarm := range w.alarms {
		alarm.Stop()
	}
	w.mu.Unlock()
	for _, c := range w.circuits {
		c.stop()
	}
}
