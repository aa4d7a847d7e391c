// Package feed notifies watchers of values in Redis that have changed. A Pub/Sub message
// is only a hint to load the value. Polls find changes whose message was lost.
package feed

// This file contains the Feed, its subscription, and the notification of watchers.

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Subscription contains the methods of *redis.PubSub that a Feed uses.
type Subscription interface {
	Subscribe(ctx context.Context, channels ...string) error
	Unsubscribe(ctx context.Context, channels ...string) error
	Ping(ctx context.Context, payload ...string) error
	ReceiveTimeout(ctx context.Context, timeout time.Duration) (any, error)
	Close() error
}

// Options are the settings of a Feed. All are required. The funcs may hang, panic, or end
// their goroutine.
type Options[T any] struct {
	Subscribe    func(ctx context.Context) Subscription // without channels
	Load         func(ctx context.Context, channel string) (T, error)
	Version      func(T) int64 // increases, unless Redis lost a value
	Quiet        func(T) bool  // the value is not expected to change soon
	Urgent       func(T) bool  // calls depend on the value: detect its loss soon
	PollInterval time.Duration // between two loads of a value that is urgent, or without Pub/Sub
}

// Feed notifies watchers of the newest version of their values soon after a message, and
// never of an older version after a newer one, unless Redis lost a value. It is safe for
// concurrent use.
//
// A Feed loads the value after a message, unless no watcher needs it (WatchMessages). It
// does not use the content of messages otherwise: Redis delivers messages to the processes
// of all its databases, and any client may publish them.
//
// One goroutine (receive) holds the subscription. Another one (keep) subscribes, and loads
// values whose message may have been lost: after every subscription, and by polls. Both
// start with the first watcher, and end on Close. A message starts a goroutine (follow)
// that ends soon after the value was loaded.
type Feed[T any] struct {
	opts    Options[T]
	wake    chan struct{} // wakes keep
	loads   chan struct{} // has an item for each load in progress
	follows chan struct{} // has an item for each follow
	stopped context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu           sync.Mutex
	watched      map[string]*watched[T] // by channel
	subscription Subscription           // nil: none
	unconfirmed  map[string]struct{}    // channels of the SUBSCRIBE in flight
	started      bool
}

// watched is a value that is watched. Feed.mu guards its fields, except the last group.
type watched[T any] struct {
	channel    string
	watchers   *watcher[T] // a list, because most values have one
	requested  bool        // SUBSCRIBE was sent on the current subscription
	subscribed bool        // Redis has confirmed it
	alone      bool        // needs a separate SUBSCRIBE: Redis refused one with several channels
	stale      bool        // must be loaded
	following  *following  // nil: no follow is running
	pollAt     time.Time
	sooner     time.Duration // how much earlier to poll while not subscribed

	notifying sync.Mutex    // held while watchers are notified: keeps the order
	version   int64         // of the last notification; guarded by notifying
	notified  int           // number of notifications; guarded by notifying
	pause     time.Duration // before the next poll; guarded by notifying
}

type watcher[T any] struct {
	fn    func(T)
	loads func(message string) bool // nil: after each message
	next  *watcher[T]
}

// following is the state of a follow. Feed.mu guards it.
type following struct {
	messages []string // received since its last load started; at most maxMessages + 1
	pause    time.Duration
}

// The limits of a Feed.
const (
	pingAfter        = 2 * time.Second        // silence on the subscription before a PING
	minReconnect     = 100 * time.Millisecond // the first pause before a new subscription; it doubles
	maxReconnect     = 2 * time.Second        // the longest pause
	maxPollPause     = 15                     // the longest pause between two polls, in poll intervals
	loadConcurrency  = 8
	maxHangingLoads  = 64              // with more loads that hang, none is started
	loadBatch        = 512             // loads between two checks for other work
	loadTimeout      = 2 * time.Second // the longest wait of keep for a load
	maxFollows       = 32              // with more of them, keep loads the values
	maxMessages      = 4               // more pending messages always load the value
	hintPause        = 10 * time.Millisecond
	maxHintPause     = 100 * time.Millisecond // while messages bring no change: of another database, or forged
	pollsPerInterval = 8                      // the most polls in an interval, for any number of values
	closeTimeout     = time.Second
)

// New returns a Feed without watchers.
func New[T any](opts Options[T]) *Feed[T] {
	f := &Feed[T]{
		opts: opts, wake: make(chan struct{}, 1), loads: make(chan struct{}, maxHangingLoads),
		follows: make(chan struct{}, maxFollows),
		watched: make(map[string]*watched[T]),
	}
	f.stopped, f.stop = context.WithCancel(context.Background())
	return f
}

// Watch calls fn with the values of the channel, one at a time. It returns immediately.
// After stop has returned, fn is not called any more, except that a call in progress may
// continue.
func (f *Feed[T]) Watch(channel string, fn func(T)) (stop func()) {
	return f.WatchMessages(channel, fn, nil)
}

// WatchMessages is Watch for a watcher that does not need the value after each message.
// loads receives the text of a message, and returns whether the watcher needs the value.
func (f *Feed[T]) WatchMessages(channel string, fn func(T), loads func(message string) bool) (stop func()) {
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
	me := &watcher[T]{fn, loads, w.watchers}
	w.watchers = me
	if !f.started {
		f.started = true
		f.running.Add(2)
		go f.receive()
		go f.keep()
	}
	f.signal()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for link := &w.watchers; *link != nil; link = &(*link).next {
			if *link == me {
				*link = me.next
				break
			}
		}
		f.signal()
	}
}

// Close ends the feed. It waits for its goroutines, but at most one second: then it
// returns false.
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
			guarded(func() { _ = subscription.Close() }) // ends the read of receive
		}
		f.running.Wait()
	})
}

func (f *Feed[T]) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// receive holds a subscription. It reconnects when the subscription breaks.
func (f *Feed[T]) receive() {
	defer f.running.Done()
	pause := minReconnect
	for {
		began := time.Now()
		guarded(f.session)
		if time.Since(began) > pingAfter {
			pause = minReconnect
		}
		if !f.sleep(pause) {
			return
		}
		pause = min(2*pause, maxReconnect)
	}
}

// session is one subscription, from its start until it breaks.
func (f *Feed[T]) session() {
	subscription := f.opts.Subscribe(f.stopped)
	defer within(closeTimeout, func() { _ = subscription.Close() }) // may hang behind Sentinel (go-redis#2943)
	// Connect, so that keep does not wait for that.
	if err := subscription.Ping(f.stopped); err != nil {
		return
	}
	defer f.setSubscription(nil)
	if f.setSubscription(subscription) {
		f.receiveFrom(subscription)
	}
}

// setSubscription sets the current subscription, which has no channels yet.
func (f *Feed[T]) setSubscription(subscription Subscription) (open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscription = subscription
	f.unconfirmed = nil
	for _, w := range f.watched {
		w.requested, w.subscribed = false, false
	}
	f.signal()
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

// isReply reports whether the error is a reply of Redis.
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
		f.pushed(m.Channel, m.Payload)
	}
}

func (f *Feed[T]) confirmed(channel string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if delete(f.unconfirmed, channel); len(f.unconfirmed) == 0 {
		f.unconfirmed = nil // free the map
	}
	if w := f.watched[channel]; w != nil {
		w.subscribed, w.stale = true, true
	}
	f.signal()
}

// refused handles an error reply, and reports whether it belongs to a SUBSCRIBE. After a
// SUBSCRIBE of several channels, each channel is then subscribed to separately, because
// an ACL may forbid only one. A channel that is refused alone is polled.
func (f *Feed[T]) refused() (expected bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for channel := range f.unconfirmed {
		expected = true
		if w := f.watched[channel]; w != nil && !w.alone {
			w.alone, w.requested = true, false
		}
	}
	f.unconfirmed = nil
	f.signal()
	return expected
}

// pushed starts the follow of a message.
func (f *Feed[T]) pushed(channel, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.watched[channel]
	switch {
	case w == nil:
	case w.following != nil:
		if l := w.following; len(l.messages) <= maxMessages {
			l.messages = append(l.messages, message)
		}
	default:
		select {
		case f.follows <- struct{}{}:
			w.following = &following{[]string{message}, hintPause}
			f.running.Go(func() { f.follow(w) })
		default:
			w.stale = true
			f.signal()
		}
	}
}

// follow loads the value immediately, and again after messages that arrive meanwhile. The
// pauses grow while the value does not change.
func (f *Feed[T]) follow(w *watched[T]) {
	defer func() { <-f.follows }()
	for {
		f.mu.Lock()
		l := w.following
		messages := l.messages
		l.messages = nil
		f.mu.Unlock()
		before := w.last()
		loads := f.needs(w, messages)
		failed := loads && f.refresh(w) != nil
		changed := w.last() != before
		f.mu.Lock()
		if failed {
			w.stale = true
			f.signal()
		}
		if changed {
			l.pause = hintPause
		}
		pause := l.pause
		l.pause = min(2*pause, maxHintPause)
		f.mu.Unlock()
		open := f.wait(pause)
		f.mu.Lock()
		if len(l.messages) == 0 || !open {
			w.following = nil
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
	}
}

// needs reports whether a watcher needs the value because of one of the messages.
func (f *Feed[T]) needs(w *watched[T], messages []string) (loads bool) {
	if len(messages) > maxMessages {
		return true
	}
	for _, message := range messages {
		for _, me := range f.watchersOf(w) {
			needed := true // even if it panics
			guarded(func() { needed = me.loads == nil || me.loads(message) })
			loads = loads || needed
		}
	}
	return loads
}

// last returns the version of the last notification.
func (w *watched[T]) last() int64 {
	w.notifying.Lock()
	defer w.notifying.Unlock()
	return w.version
}

// notify notifies the watchers of a value. since is the number of notifications before it
// was loaded. If there were others since then, and the value is not newer, notify does
// nothing and returns false.
func (f *Feed[T]) notify(w *watched[T], value T, since int) (current bool) {
	w.notifying.Lock()
	defer w.notifying.Unlock()
	version := f.opts.Version(value)
	if since != w.notified && version <= w.version {
		return false
	}
	f.schedule(w, value, version != w.version)
	w.version = version
	w.notified++
	for _, me := range f.watchersOf(w) {
		me.fn(value)
	}
	return true
}

// schedule sets the time of the next poll: one interval later if the value is urgent or
// has changed. The pauses grow while it does not change. A quiet value is polled rarely.
func (f *Feed[T]) schedule(w *watched[T], value T, changed bool) {
	most := maxPollPause * f.opts.PollInterval
	switch {
	case f.opts.Urgent(value):
		w.pause = f.opts.PollInterval
	case f.opts.Quiet(value):
		w.pause = most
	case changed:
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
