package feed

// This file contains keep, the goroutine that subscribes, polls and loads.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// keep subscribes, unsubscribes, loads and polls.
func (f *Feed[T]) keep() {
	defer f.running.Done()
	polled := time.Now()
	timer := time.NewTimer(jittered(f.opts.PollInterval))
	defer timer.Stop()
	for {
		select {
		case <-f.stopped.Done():
			return
		case <-f.wake:
		case <-timer.C:
			polled = time.Now()
			f.poll(polled)
			timer.Reset(jittered(f.opts.PollInterval))
		}
		guarded(f.subscribe)
		if f.loadStale() {
			timer.Reset(time.Until(f.pollAfter(polled)))
		}
	}
}

// poll marks values as stale whose poll time has passed.
func (f *Feed[T]) poll(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if !now.Before(w.nextPoll()) {
			w.stale = true
		}
	}
}

// nextPoll returns when to load the value: the zero time if it was never loaded. The
// caller holds f.mu.
func (w *watched[T]) nextPoll() time.Time {
	if !w.subscribed {
		return w.pollAt.Add(-w.sooner)
	}
	return w.pollAt
}

// pollAfter returns when to poll after that time: at most 1.5 intervals later, because
// failed loads are repeated then.
func (f *Feed[T]) pollAfter(polled time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := polled.Add(jittered(f.opts.PollInterval))
	for _, w := range f.watched {
		if next := w.nextPoll(); !next.IsZero() && next.Before(at) {
			at = next
		}
	}
	if least := polled.Add(f.opts.PollInterval / pollsPerInterval); at.Before(least) {
		return least
	}
	return at
}

// subscribe subscribes to new values, and unsubscribes from values without watchers. It
// ignores errors: they also end the session, and the next one subscribes to all values.
func (f *Feed[T]) subscribe() {
	f.mu.Lock()
	unwanted := f.forget()
	wanted := f.nextSubscribe()
	subscription := f.subscription
	f.mu.Unlock()
	if subscription == nil {
		return
	}
	if len(wanted) > 0 {
		_ = subscription.Subscribe(f.stopped, wanted...)
	}
	if len(unwanted) > 0 {
		_ = subscription.Unsubscribe(f.stopped, unwanted...)
	}
}

// forget drops values without watchers, and returns the channels to unsubscribe from. The
// caller holds f.mu.
func (f *Feed[T]) forget() (unwanted []string) {
	for channel, w := range f.watched {
		if w.watchers != nil {
			continue
		}
		delete(f.watched, channel)
		if w.requested {
			unwanted = append(unwanted, channel)
		}
	}
	return unwanted
}

// nextSubscribe returns the channels of the next SUBSCRIBE. Only one is in flight at a
// time, so that an error reply belongs to it. The caller holds f.mu.
func (f *Feed[T]) nextSubscribe() (wanted []string) {
	if f.subscription == nil || len(f.unconfirmed) > 0 {
		return nil
	}
	var alone *watched[T]
	for channel, w := range f.watched {
		switch {
		case w.requested:
		case w.alone:
			alone = w
		default:
			wanted = append(wanted, channel)
		}
	}
	if wanted == nil && alone != nil {
		wanted = []string{alone.channel}
	}
	f.unconfirmed = make(map[string]struct{}, len(wanted))
	for _, channel := range wanted {
		f.watched[channel].requested = true
		f.unconfirmed[channel] = struct{}{}
	}
	return wanted
}

// loadStale loads the stale values, some concurrently. It stops at the first error, so
// that an unavailable Redis gets one request per poll, not one per value. It reports
// whether all loads succeeded.
func (f *Feed[T]) loadStale() (done bool) {
	stale := f.takeStale()
	var next atomic.Int64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range min(loadConcurrency, len(stale)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(stale)); i = next.Add(1) - 1 {
				if failed.Load() || f.stopped.Err() != nil {
					f.reload(stale[i])
				} else if err := f.refresh(stale[i]); err != nil {
					failed.Store(true)
					f.reload(stale[i])
				}
			}
		})
	}
	workers.Wait()
	if len(stale) == loadBatch && !failed.Load() {
		f.signal()
	}
	return !failed.Load()
}

func (f *Feed[T]) takeStale() (stale []*watched[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if w.stale && len(stale) < loadBatch {
			w.stale = false
			stale = append(stale, w)
		}
	}
	return stale
}

// refresh loads a value and notifies its watchers. If they were notified of a newer value
// meanwhile, it loads the value again.
func (f *Feed[T]) refresh(w *watched[T]) error {
	for f.stopped.Err() == nil {
		w.notifying.Lock()
		notified := w.notified
		w.notifying.Unlock()
		value, err := f.load(w.channel)
		if err != nil || f.notifyGuarded(w, value, notified) {
			return err
		}
	}
	return nil
}

// notifyGuarded is notify for watchers that panic or end their goroutine.
func (f *Feed[T]) notifyGuarded(w *watched[T], value T, since int) (current bool) {
	current = true // even if a watcher panics
	guarded(func() { current = f.notify(w, value, since) })
	return current
}

// load loads a value. It waits at most loadTimeout, also for a client that ignores its context.
func (f *Feed[T]) load(channel string) (value T, err error) {
	select {
	case f.loads <- struct{}{}:
	default:
		return value, errors.New("infuse: too many requests without a reply")
	}
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	ctx, cancel := context.WithTimeout(f.stopped, loadTimeout)
	defer cancel()
	go func() {
		a := answer{err: errors.New("infuse: the client ended the goroutine")}
		defer func() {
			if r := recover(); r != nil {
				a.err = fmt.Errorf("infuse: the client panicked: %v", r)
			}
			<-f.loads
			answered <- a
		}()
		a.value, a.err = f.opts.Load(ctx, channel)
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return value, ctx.Err()
	}
}

// guarded runs a func that may panic or end its goroutine, as hooks of a client can, and
// waits for it.
func guarded(run func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		run()
	}()
	<-done
}

// within is guarded for a func that may hang: it waits at most that long.
func within(timeout time.Duration, run func()) (ended bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		guarded(run)
	}()
	select {
	case <-done:
		return true
	case <-time.After(timeout):
		return false
	}
}

// sleep waits for d ± 50 %, or until the feed is closed.
func (f *Feed[T]) sleep(d time.Duration) (open bool) { return f.wait(jittered(d)) }

// wait waits for d, or until the feed is closed.
func (f *Feed[T]) wait(d time.Duration) (open bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.stopped.Done():
		return false
	}
}

// jittered returns d ± 50 %, so that processes that lost Redis together do not reconnect
// together.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }
