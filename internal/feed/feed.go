// Package feed notifies watchers of values in Redis that have changed. A message
// of Pub/Sub is only a hint to read the value, and a poll finds the changes whose
// message was lost.
package feed

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Subscription is what a Feed needs of a *redis.PubSub.
type Subscription interface {
	Subscribe(ctx context.Context, channels ...string) error
	Unsubscribe(ctx context.Context, channels ...string) error
	Ping(ctx context.Context, payload ...string) error
	ReceiveTimeout(ctx context.Context, timeout time.Duration) (any, error)
	Close() error
}

// Options are what a Feed knows of its values. All are required. What they
// call may hang, panic, or end its goroutine.
type Options[T any] struct {
	Subscribe    func(ctx context.Context) Subscription // to no channel yet
	Load         func(ctx context.Context, channel string) (T, error)
	Version      func(T) int64 // ascends, unless Redis lost a value
	Quiet        func(T) bool  // the value is not expected to change soon
	Urgent       func(T) bool  // calls depend on the value: its loss is to be noticed soon
	PollInterval time.Duration // how often a value is loaded that is urgent, or that Pub/Sub does not reach
}

// Feed notifies watchers of their values: of the newest version soon after a
// message was published, and never of an older one after a newer one, unless
// Redis lost a value. It is safe for concurrent use.
//
// Nothing is taken from a message: Redis delivers it to the processes of all its
// databases, and anybody may have published it. The value is loaded.
//
// One goroutine (receive) holds the subscription. Another (keep) subscribes, and
// loads the values whose message may have been missed: after every subscription,
// and by the poll. Both begin with the first watcher, and end on Close. A message
// starts one more (follow), which ends soon after the value was loaded.
type Feed[T any] struct {
	opts    Options[T]
	wake    chan struct{} // tells keep that there is something to do
	loads   chan struct{} // has an item for each load under way
	follows chan struct{} // has an item for each follow
	stopped context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu           sync.Mutex
	watched      map[string]*watched[T] // by channel
	subscription Subscription           // nil while there is none
	unconfirmed  map[string]struct{}    // of the one SUBSCRIBE that is under way
	started      bool
}

// watched is a value that is watched. Its fields are guarded by Feed.mu, but
// for the last three.
type watched[T any] struct {
	channel    string
	watchers   *watcher[T]   // a list, because most values have one
	asked      bool          // SUBSCRIBE was sent on the present subscription
	subscribed bool          // and Redis has confirmed it
	alone      bool          // is asked for in a SUBSCRIBE of its own: Redis refused one of it and others
	stale      bool          // is to be loaded
	followed   bool          // a follow loads it
	hinted     bool          // a message has come that no load of follow has begun after
	hintPause  time.Duration // between two loads of follow
	pollAt     time.Time
	sooner     time.Duration // than pollAt, if Pub/Sub does not reach it

	telling sync.Mutex    // held while watchers are told: keeps the order
	version int64         // what they were told last; guarded by telling
	told    int           // how often they were told; guarded by telling
	pause   time.Duration // before the next poll; guarded by telling
}

type watcher[T any] struct {
	fn   func(T)
	next *watcher[T]
}

// The bounds of what a Feed does.
const (
	pingAfter      = 2 * time.Second        // silence on the subscription after which Redis is asked whether it lives
	reconnectAfter = 100 * time.Millisecond // the first pause before a new subscription; it doubles
	reconnectMost  = 2 * time.Second        // the longest pause
	slowPoll       = 15                     // the longest pause between two polls, in poll intervals
	loadsAtOnce    = 8
	loadsHanging   = 64              // loads that keep does not wait for any more; beyond, it begins none
	loadsInARow    = 512             // after which keep looks for what else there is to do
	loadTimeout    = 2 * time.Second // how long keep waits for one
	followsAtOnce  = 32              // beyond, keep loads
	hintPause      = 10 * time.Millisecond
	hintPauseMost  = 100 * time.Millisecond // while messages bring no news: those of another database, or forged
	tickLeast      = 8                      // polls are at most so often in an interval, however many values there are
	closeTimeout   = time.Second
)

// New returns a Feed that watches nothing yet.
func New[T any](opts Options[T]) *Feed[T] {
	f := &Feed[T]{
		opts: opts, wake: make(chan struct{}, 1), loads: make(chan struct{}, loadsHanging),
		follows: make(chan struct{}, followsAtOnce),
		watched: make(map[string]*watched[T]),
	}
	f.stopped, f.stop = context.WithCancel(context.Background())
	return f
}

// Watch calls fn with the values of the channel, one at a time. It returns at
// once. After stop has returned, fn is not called any more, but for a call
// under way.
func (f *Feed[T]) Watch(channel string, fn func(T)) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped.Err() != nil {
		return func() {}
	}
	w := f.watched[channel]
	if w == nil {
		w = &watched[T]{channel: channel}
		f.watched[channel] = w
	}
	me := &watcher[T]{fn, w.watchers}
	w.watchers = me
	if !f.started {
		f.started = true
		f.running.Add(2)
		go f.receive()
		go f.keep()
	}
	f.nudge()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for link := &w.watchers; *link != nil; link = &(*link).next {
			if *link == me {
				*link = me.next
				break
			}
		}
		f.nudge()
	}
}

// Close ends the feed. It waits for what is under way, for a second at most:
// then it returns false.
func (f *Feed[T]) Close() (ended bool) {
	f.mu.Lock()
	f.stop()
	started, subscription := f.started, f.subscription
	f.mu.Unlock()
	if !started {
		return true
	}
	return within(closeTimeout, func() {
		if subscription != nil {
			guarded(func() { _ = subscription.Close() }) // ends the read that receive waits in
		}
		f.running.Wait()
	})
}

func (f *Feed[T]) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// receive keeps a subscription up, anew whenever it breaks.
func (f *Feed[T]) receive() {
	defer f.running.Done()
	pause := reconnectAfter
	for {
		began := time.Now()
		guarded(f.session)
		if time.Since(began) > pingAfter {
			pause = reconnectAfter
		}
		if !f.sleep(pause) {
			return
		}
		pause = min(2*pause, reconnectMost)
	}
}

// session is one subscription, from its start until it breaks.
func (f *Feed[T]) session() {
	subscription := f.opts.Subscribe(f.stopped)
	defer within(closeTimeout, func() { _ = subscription.Close() }) // may hang behind Sentinel (go-redis#2943)
	// Connects, so that keep never waits for that.
	if err := subscription.Ping(f.stopped); err != nil {
		return
	}
	defer f.begin(nil)
	if f.begin(subscription) {
		f.receiveFrom(subscription)
	}
}

// begin makes it the present subscription, which has no channels yet.
func (f *Feed[T]) begin(subscription Subscription) (open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscription = subscription
	f.unconfirmed = nil
	for _, w := range f.watched {
		w.asked, w.subscribed = false, false
	}
	f.nudge()
	return f.stopped.Err() == nil
}

func (f *Feed[T]) receiveFrom(subscription Subscription) {
	for pinged := false; f.stopped.Err() == nil; {
		message, err := subscription.ReceiveTimeout(f.stopped, pingAfter)
		switch {
		case err == nil:
			pinged = false
			f.received(message)
		case isTimeout(err) && !pinged:
			pinged = true
			if subscription.Ping(f.stopped) != nil {
				return
			}
		case !isReply(err) || !f.refused():
			return
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// isReply reports that Redis answers, if only with an error.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

func (f *Feed[T]) received(message any) {
	switch m := message.(type) {
	case *redis.Subscription:
		if m.Kind == "subscribe" {
			f.confirmed(m.Channel)
		}
	case *redis.Message:
		f.pushed(m.Channel)
	}
}

func (f *Feed[T]) confirmed(channel string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if delete(f.unconfirmed, channel); len(f.unconfirmed) == 0 {
		f.unconfirmed = nil // a map keeps its room
	}
	if w := f.watched[channel]; w != nil {
		w.subscribed, w.stale = true, true
	}
	f.nudge()
}

// refused is told of an error reply. If it is the answer to a SUBSCRIBE of
// many channels, each of these is asked for alone: a user may be permitted all
// but one. One that was asked for alone is left to the poll.
func (f *Feed[T]) refused() (expected bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for channel := range f.unconfirmed {
		expected = true
		if w := f.watched[channel]; w != nil && !w.alone {
			w.alone, w.asked = true, false
		}
	}
	f.unconfirmed = nil
	f.nudge()
	return expected
}

// pushed has the value loaded of which a message has come.
func (f *Feed[T]) pushed(channel string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.watched[channel]
	switch {
	case w == nil:
	case w.followed:
		w.hinted = true
	default:
		select {
		case f.follows <- struct{}{}:
			w.followed, w.hintPause = true, hintPause
			f.running.Go(func() { f.follow(w) })
		default:
			w.stale = true
			f.nudge()
		}
	}
}

// follow loads the value of a message at once, and again for the messages that
// come meanwhile. It does so ever less often while they bring no news.
func (f *Feed[T]) follow(w *watched[T]) {
	defer func() { <-f.follows }()
	for {
		before := w.last()
		failed := f.refresh(w) != nil
		news := w.last() != before
		f.mu.Lock()
		if failed {
			w.stale = true
			f.nudge()
		}
		if news {
			w.hintPause = hintPause
		}
		pause := w.hintPause
		w.hintPause = min(2*pause, hintPauseMost)
		f.mu.Unlock()
		open := f.wait(pause)
		f.mu.Lock()
		if again := w.hinted && open; !again {
			w.followed = false
			f.mu.Unlock()
			return
		}
		w.hinted = false
		f.mu.Unlock()
	}
}

// last is the version that the watchers were notified of last.
func (w *watched[T]) last() int64 {
	w.telling.Lock()
	defer w.telling.Unlock()
	return w.version
}

// tell notifies the watchers of a value that was loaded since they had been
// notified so often, unless they were notified of one at least as new meanwhile:
// then it returns false.
func (f *Feed[T]) tell(w *watched[T], value T, since int) (current bool) {
	w.telling.Lock()
	defer w.telling.Unlock()
	version := f.opts.Version(value)
	if since != w.told && version <= w.version {
		return false
	}
	f.schedule(w, value, version != w.version)
	w.version = version
	w.told++
	for _, me := range f.watchersOf(w) {
		me.fn(value)
	}
	return true
}

// schedule sets the time of the next poll: an interval later after news, or if
// the value is urgent, and ever later as long as there is no news. A quiet value
// is polled rarely.
func (f *Feed[T]) schedule(w *watched[T], value T, news bool) {
	most := slowPoll * f.opts.PollInterval
	switch {
	case f.opts.Urgent(value):
		w.pause = f.opts.PollInterval
	case f.opts.Quiet(value):
		w.pause = most
	case news:
		w.pause = f.opts.PollInterval
	default:
		w.pause = min(2*w.pause, most)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	soon, pause := jittered(f.opts.PollInterval), jittered(w.pause)
	if pause < soon || w.pause == f.opts.PollInterval {
		pause = soon
	}
	w.pollAt, w.sooner = time.Now().Add(pause), pause-soon
}

func (f *Feed[T]) watchersOf(w *watched[T]) []*watcher[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*watcher[T]
	for me := w.watchers; me != nil; me = me.next {
		all = append(all, me)
	}
	return all
}

func (f *Feed[T]) reload(w *watched[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.stale = true
}
