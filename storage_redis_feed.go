package infuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisFeed tells a RedisStorage's watchers what became of their circuits.
//
// One goroutine (receive) holds the subscription and hands on what is pushed;
// another (keep) subscribes to new circuits and loads those that may have
// missed a message: all after every (re)subscription and, at every poll, those
// that Pub/Sub does not reach or that are not closed. Both end on close.
type redisFeed struct {
	storage *RedisStorage
	loads   *guard // bounds how long keep waits for one
	poll    time.Duration
	wake    chan struct{} // tells keep that there is something to do
	stopped context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	watched map[string]*watchedCircuit // by channel
	pubsub  *redis.PubSub              // the present subscription; nil while there is none
	started bool
}

// watchedCircuit is guarded by redisFeed.mu, but for last and telling.
type watchedCircuit struct {
	circuit    string
	watchers   map[*redisWatcher]struct{}
	asked      bool // SUBSCRIBE was sent on the present subscription
	subscribed bool // and Redis has confirmed it
	stale      bool // is to be loaded
	blocked    bool // not closed, by what was told last: if Redis loses that, somebody is to find out soon

	telling sync.Mutex // held while watchers are told: keeps the order
	last    Record     // what they were told last; guarded by telling
	told    int        // how often they were told; guarded by telling
}

type redisWatcher struct{ fn func(Record) }

// How a subscription is kept up.
const (
	pingAfter      = 2 * time.Second        // silence on the subscription after which Redis is asked whether it lives
	reconnectAfter = 100 * time.Millisecond // the first pause before a new subscription; it doubles
	reconnectMost  = 2 * time.Second        // the longest pause
	slowPoll       = 15                     // a closed circuit that Pub/Sub reaches is polled each so many polls
	loadTimeout    = 2 * time.Second        // how long keep waits for one record
)

func newRedisFeed(s *RedisStorage, poll time.Duration) *redisFeed {
	f := &redisFeed{storage: s, loads: newGuard(), poll: poll, wake: make(chan struct{}, 1), watched: make(map[string]*watchedCircuit)}
	f.stopped, f.stop = context.WithCancel(context.Background())
	return f
}

func (f *redisFeed) watch(circuit string, fn func(Record)) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped.Err() != nil {
		return func() {}
	}
	channel := f.storage.key(circuit)
	w := f.watched[channel]
	if w == nil {
		w = &watchedCircuit{circuit: circuit, watchers: make(map[*redisWatcher]struct{})}
		f.watched[channel] = w
	}
	me := &redisWatcher{fn}
	w.watchers[me] = struct{}{}
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
		delete(w.watchers, me)
		f.nudge()
	}
}

func (f *redisFeed) close() error {
	f.mu.Lock()
	f.stop()
	started, pubsub := f.started, f.pubsub
	f.mu.Unlock()
	if !started {
		return nil
	}
	done := make(chan struct{})
	go func() {
		if pubsub != nil {
			_ = pubsub.Close() // ends the read that receive waits in
		}
		f.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(time.Second):
		return errors.New("infuse: closing the Redis storage: the client still waits for Redis")
	}
}

func (f *redisFeed) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// pause waits for d, give or take half, or until the feed is closed.
func (f *redisFeed) pause(d time.Duration) (open bool) {
	timer := time.NewTimer(jittered(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.stopped.Done():
		return false
	}
}

// jittered returns d give or take half, so that processes which lost Redis
// together do not come back together.
func jittered(d time.Duration) time.Duration {
	return d/2 + rand.N(d)
}

// receive keeps a subscription up, anew whenever it breaks.
func (f *redisFeed) receive() {
	defer f.running.Done()
	pause := reconnectAfter
	for {
		began := time.Now()
		f.session()
		if time.Since(began) > pingAfter {
			pause = reconnectAfter
		}
		if !f.pause(pause) {
			return
		}
		pause = min(2*pause, reconnectMost)
	}
}

// session is one subscription, from its start until it breaks.
func (f *redisFeed) session() {
	pubsub, err := f.subscribe()
	if err != nil {
		return
	}
	// Connects, so that keep never waits for that.
	if err := pubsub.Ping(f.stopped); err != nil {
		closeBounded(pubsub)
		return
	}
	f.mu.Lock()
	if f.stopped.Err() != nil {
		f.mu.Unlock()
		closeBounded(pubsub)
		return
	}
	f.pubsub = pubsub
	f.mu.Unlock()
	f.nudge()

	f.receiveFrom(pubsub)

	f.mu.Lock()
	f.pubsub = nil
	for _, w := range f.watched {
		w.asked, w.subscribed = false, false
	}
	f.mu.Unlock()
	closeBounded(pubsub)
}

// subscribe opens a subscription to nothing yet. A Ring without a live shard
// panics instead of returning one.
func (f *redisFeed) subscribe() (pubsub *redis.PubSub, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("infuse: redis: subscribe: %v", r)
		}
	}()
	return f.storage.client.Subscribe(f.stopped), nil
}

// closeBounded does not wait for a Close that hangs, as it can behind Sentinel
// (go-redis#2943).
func closeBounded(pubsub *redis.PubSub) {
	done := make(chan struct{})
	go func() {
		_ = pubsub.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

func (f *redisFeed) receiveFrom(pubsub *redis.PubSub) {
	for pinged := false; f.stopped.Err() == nil; {
		message, err := pubsub.ReceiveTimeout(f.stopped, pingAfter)
		if isTimeout(err) && !pinged {
			pinged = true
			if pubsub.Ping(f.stopped) == nil {
				continue
			}
		}
		if err != nil {
			return
		}
		pinged = false
		switch m := message.(type) {
		case *redis.Subscription:
			f.subscribed(m)
		case *redis.Message:
			f.pushed(m)
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (f *redisFeed) subscribed(m *redis.Subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.watched[m.Channel]; w != nil && m.Kind == "subscribe" {
		w.subscribed, w.stale = true, true
		f.nudge()
	}
}

func (f *redisFeed) pushed(m *redis.Message) {
	f.mu.Lock()
	w := f.watched[m.Channel]
	f.mu.Unlock()
	if w == nil {
		return
	}
	record, err := decodeRecord(m.Payload, time.Now())
	if err != nil {
		return // a stranger's, or a newer version's: the poll finds out
	}
	if !f.tell(w, record, pushed) {
		// Redis holds an older record than it told of before: it may have lost
		// one. What it really holds is for keep to load.
		f.reload(w)
		f.nudge()
	}
}

// tell hands a record to the circuit's watchers, unless it may be older than
// the last one: then it returns false. That is a pushed one of an older
// generation; and one that was loaded since they had been told so often, if
// they have been told of what is at least as new meanwhile.
func (f *redisFeed) tell(w *watchedCircuit, record Record, since int) bool {
	w.telling.Lock()
	defer w.telling.Unlock()
	if since == pushed && record.Generation < w.last.Generation ||
		since != pushed && since != w.told && record.Generation <= w.last.Generation {
		return false
	}
	w.last = record
	w.told++
	f.mu.Lock()
	w.blocked = record.State != StateClosed
	watchers := make([]*redisWatcher, 0, len(w.watchers))
	for me := range w.watchers {
		watchers = append(watchers, me)
	}
	f.mu.Unlock()
	for _, me := range watchers {
		me.fn(record)
	}
	return true
}

// pushed stands for a record that was not loaded: see tell.
const pushed = -1

// keep subscribes, unsubscribes, loads and polls.
func (f *redisFeed) keep() {
	defer f.running.Done()
	ticks := 0
	timer := time.NewTimer(jittered(f.poll))
	defer timer.Stop()
	for {
		select {
		case <-f.stopped.Done():
			return
		case <-f.wake:
		case <-timer.C:
			ticks++
			f.markStale(ticks%slowPoll == 0)
			timer.Reset(jittered(f.poll))
		}
		f.syncSubscriptions()
		f.loadStale()
	}
}

func (f *redisFeed) markStale(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if all || !w.subscribed || w.blocked {
			w.stale = true
		}
	}
}

// syncSubscriptions subscribes to what is newly watched, and forgets what is
// not watched any more.
func (f *redisFeed) syncSubscriptions() {
	f.mu.Lock()
	pubsub := f.pubsub
	var wanted, unwanted []string
	for channel, w := range f.watched {
		switch {
		case len(w.watchers) == 0:
			delete(f.watched, channel)
			if w.asked {
				unwanted = append(unwanted, channel)
			}
		case pubsub != nil && !w.asked:
			w.asked = true
			wanted = append(wanted, channel)
		}
	}
	f.mu.Unlock()
	if pubsub == nil {
		return
	}
	// An error of either ends the session too, and the next starts from what
	// is watched then.
	if len(wanted) > 0 {
		_ = pubsub.Subscribe(f.stopped, wanted...)
	}
	if len(unwanted) > 0 {
		_ = pubsub.Unsubscribe(f.stopped, unwanted...)
	}
}

// loadStale loads the circuits that may have missed something, one after the
// other. The first failure ends the round: a storage that is away is asked
// once a poll, and not once a circuit.
func (f *redisFeed) loadStale() {
	for f.stopped.Err() == nil {
		w := f.nextStale()
		if w == nil {
			return
		}
		w.telling.Lock()
		told := w.told
		w.telling.Unlock()
		a := f.load(w.circuit)
		if isUnreadable(a.err) {
			continue // not the storage's trouble; the breaker finds out when it asks
		}
		if a.err != nil {
			f.reload(w)
			return
		}
		if !f.tell(w, a.record, told) {
			f.reload(w)
		}
	}
}

// reload has keep load the circuit's record, once more if it just did.
func (f *redisFeed) reload(w *watchedCircuit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.stale = true
}

// load does not wait for a client that hangs.
func (f *redisFeed) load(circuit string) answer {
	return f.loads.ask(f.stopped, loadTimeout, func(ctx context.Context) answer {
		record, err := f.storage.Load(ctx, circuit)
		return answer{record: record, err: err}
	}, nil)
}

func (f *redisFeed) nextStale() *watchedCircuit {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watched {
		if w.stale {
			w.stale = false
			return w
		}
	}
	return nil
}
