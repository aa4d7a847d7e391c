package feed

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

// poll has the values loaded whose time has come.
func (f *Feed[T]) poll(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if !now.Before(w.nextPoll()) {
			w.stale = true
		}
	}
}

// nextPoll is when the value is to be loaded: at once if it never was. f.mu is
// held.
func (w *watched[T]) nextPoll() time.Time {
	if !w.subscribed {
		return w.pollAt.Add(-w.sooner)
	}
	return w.pollAt
}

// pollAfter returns when to poll after that time: within 1.5 intervals, because
// what failed is tried again by then.
func (f *Feed[T]) pollAfter(polled time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := polled.Add(jittered(f.opts.PollInterval))
	for _, w := range f.watched {
		if next := w.nextPoll(); !next.IsZero() && next.Before(at) {
			at = next
		}
	}
	if least := polled.Add(f.opts.PollInterval / tickLeast); at.Before(least) {
		return least
	}
	return at
}

// subscribe subscribes to what is newly watched, and forgets what is not
// watched any more. An error of either ends the session, too, and the next
// starts from what is watched then.
func (f *Feed[T]) subscribe() {
	f.mu.Lock()
	unwanted := f.forget()
	wanted := f.nextToAskFor()
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

// forget drops what is not watched any more, and returns the channels to
// unsubscribe from. f.mu is held.
func (f *Feed[T]) forget() (unwanted []string) {
	for channel, w := range f.watched {
		if w.watchers != nil {
			continue
		}
		delete(f.watched, channel)
		if w.asked {
			unwanted = append(unwanted, channel)
		}
	}
	return unwanted
}

// nextToAskFor returns the channels of the next SUBSCRIBE. Only one is under
// way at a time, so that an error is the answer to it. f.mu is held.
func (f *Feed[T]) nextToAskFor() (wanted []string) {
	if f.subscription == nil || len(f.unconfirmed) > 0 {
		return nil
	}
	var alone *watched[T]
	for channel, w := range f.watched {
		switch {
		case w.asked:
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
		f.watched[channel].asked = true
		f.unconfirmed[channel] = struct{}{}
	}
	return wanted
}

// loadStale loads the values that may have changed, a few at a time. The first
// failure ends the round: a Redis that is unavailable is asked once a poll, and
// not once a value. It reports whether nothing failed.
func (f *Feed[T]) loadStale() (done bool) {
	stale := f.takeStale()
	var next atomic.Int64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range min(loadsAtOnce, len(stale)) {
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
	if len(stale) == loadsInARow && !failed.Load() {
		f.nudge()
	}
	return !failed.Load()
}

func (f *Feed[T]) takeStale() (stale []*watched[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if w.stale && len(stale) < loadsInARow {
			w.stale = false
			stale = append(stale, w)
		}
	}
	return stale
}

// refresh loads a value and tells its watchers. Where they were told of a
// newer one meanwhile, the value is loaded again.
func (f *Feed[T]) refresh(w *watched[T]) error {
	for f.stopped.Err() == nil {
		w.telling.Lock()
		told := w.told
		w.telling.Unlock()
		value, err := f.load(w.channel)
		if err != nil || f.told(w, value, told) {
			return err
		}
	}
	return nil
}

func (f *Feed[T]) told(w *watched[T], value T, since int) (current bool) {
	current = true // also where a watcher panics
	guarded(func() { current = f.tell(w, value, since) })
	return current
}

// load does not wait for a client that hangs.
func (f *Feed[T]) load(channel string) (value T, err error) {
	select {
	case f.loads <- struct{}{}:
	default:
		return value, errors.New("infuse: too many requests hang")
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

// guarded runs what may panic or end its goroutine, as hooks of a client can,
// and waits for it.
func guarded(run func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		run()
	}()
	<-done
}

// within is guarded for what may hang: it waits no longer than that.
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

// jittered returns d ± 50 %, so that processes which lost Redis
// together do not come back together.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }
