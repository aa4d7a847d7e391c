package infuse

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse/internal/feed"
)

// RedisOptions are the settings of a RedisStorage. The zero value is ready to use.
type RedisOptions struct {
	// Prefix is the beginning of the names of all keys and channels. Default "infuse:".
	Prefix string

	// PollInterval is how often (± 50 %) a process reads the record of a circuit that
	// rejects calls or has an override, and of all circuits while Pub/Sub is unavailable.
	// Default 2 s, minimum 1 ms. If Pub/Sub is not permitted, or its connection was
	// closed, a process receives a change within 1.5 intervals while Redis answers. A
	// connection that died silently is detected within 4 s more. If Redis lost a circuit
	// that rejects calls, or an override, it is restored within 1.5 intervals.
	//
	// All other circuits are read too, because a message can be lost: one interval after
	// a change, then less often, and at least every 15 intervals.
	PollInterval time.Duration
}

// RedisStorage keeps circuits in Redis, for all processes with the same server (or
// Cluster), database and Prefix. Make it with NewRedisStorage. All methods are safe for
// concurrent use.
//
// A failure is counted in one round trip. A state change takes one if this process has
// the current record, otherwise two. A Pub/Sub message makes the other processes read a
// record whose state has changed.
//
// When the first circuit is watched, RedisStorage starts two goroutines and opens one
// connection; Close stops them. It does not close the client.
//
// The record of a circuit is the hash <Prefix>{<circuit>}, with the name in the form of
// url.QueryEscape. It expires one hour after its last deadline. All times are those of
// Redis's clock.
//
// Clients that may write these keys can change the state of circuits. A message cannot:
// at most it makes a process read the record, or report its next success.
type RedisStorage struct {
	client  redis.UniversalClient
	prefix  string
	known   knownRecords
	feed    *feed.Feed[knownRecord]
	invalid error // of the settings; the error of every use
}

// Two scripts write a record. countScript adds to its count. swapScript replaces the
// record if it has not changed since this process read it; Record.Apply, in this process,
// has made the new record. readScript has no command that writes.
//
// The hash has the fields
//
//	v          the version, raised by each write
//	g          the record's generation
//	r1, r2…    the bytes of AppendRecord, 64 in each; none for a zero Record
//	r          these bytes, if they are more than 512
//	t          the time when these were written, in milliseconds of Redis's clock
//	n          the count, which replaces the count in the record
//	w          the window, which replaces the window in the record
//	s:<source> the last sequence number of this source, and the time of its last use
var (
	//go:embed lua/read.lua
	readSource string
	//go:embed lua/write.lua
	writeSource string
	//go:embed lua/count.lua
	countSource string
	//go:embed lua/swap.lua
	swapSource string

	readScript = redis.NewScript(readSource + `
return reply(duplicate() and '2' or '0', version(), old[2], old[3], old[4], old[5], record())`)
	countScript = redis.NewScript(readSource + writeSource + countSource)
	swapScript  = redis.NewScript(readSource + writeSource + swapSource)

	historyScript = redis.NewScript("return redis.pcall('LRANGE', KEYS[1], 0, 49)")
)

// NewRedisStorage returns a storage that uses the client. It does no I/O. If the client
// is nil or the options are invalid, every method returns an error, and so does New for a
// breaker with this storage.
func NewRedisStorage(client redis.UniversalClient, opts RedisOptions) *RedisStorage {
	if opts.Prefix == "" {
		opts.Prefix = "infuse:"
	}
	s := &RedisStorage{client: client, prefix: opts.Prefix}
	if client == nil {
		s.invalid = errors.New("infuse: NewRedisStorage: the client is nil")
	}
	if opts.PollInterval == 0 {
		opts.PollInterval = 2 * time.Second
	}
	if opts.PollInterval < time.Millisecond {
		s.invalid = fmt.Errorf("infuse: RedisOptions.PollInterval is %v: must be at least 1ms, or 0 for 2s", opts.PollInterval)
		opts.PollInterval = 2 * time.Second
	}
	s.feed = feed.New(feed.Options[knownRecord]{
		Subscribe:    func(ctx context.Context) feed.Subscription { return client.Subscribe(ctx) },
		Load:         s.read,
		Version:      knownRecord.order,
		Quiet:        knownRecord.quiet,
		Urgent:       knownRecord.urgent,
		PollInterval: opts.PollInterval,
	})
	return s
}

// Load implements Storage, in one round trip. It runs a script, because a client may send
// commands that only read to a replica.
func (s *RedisStorage) Load(ctx context.Context, circuit string) (Record, error) {
	if err := s.check(circuit); err != nil {
		return Record{}, err
	}
	k, err := s.read(ctx, s.key(circuit))
	if err == nil {
		err = k.err(circuit)
	}
	return k.local(), err
}

// Apply implements Storage, usually in one or two round trips. It makes more of them if
// other processes change the record at the same time.
func (s *RedisStorage) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	err := s.check(circuit)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return Record{}, VerdictRefused, err
	}
	a := redisChange{s: s, circuit: circuit, key: s.key(circuit), Change: c, original: c}
	a.known = s.known.get(a.key)
	for ; a.round < maxRounds; a.round++ {
		done, err := a.try(ctx)
		if err == nil && a.known.problem != nil && c.Manual == nil && c.Override == nil {
			err = a.known.err(circuit)
		}
		if err != nil {
			return Record{}, VerdictRefused, err
		}
		if done {
			return a.next.withoutNumbers().translated(a.now, a.localNow), a.verdict, nil
		}
		if a.refusals >= maxRefused {
			return Record{}, VerdictRefused, &RecordError{circuit, "rejects every change, although no other process changes it"}
		}
		if err := a.backOff(ctx); err != nil {
			return Record{}, VerdictRefused, err
		}
	}
	return Record{}, VerdictRefused, fmt.Errorf("infuse: redis: circuit %q: gave up after %d conflicting changes", circuit, maxRounds)
}

// Watch implements Storage.
func (s *RedisStorage) Watch(circuit string, fn func(Record)) (stop func()) {
	return s.watch(circuit, fn, nil)
}

func (s *RedisStorage) announces() Storage { return s }

func (s *RedisStorage) watchAnnounced(circuit string, fn func(Record), announced func(notice) (reads bool)) (stop func()) {
	return s.watch(circuit, fn, func(message string) (loads bool) { return announced(parseNotice(message)) })
}

func (s *RedisStorage) watch(circuit string, fn func(Record), loads func(message string) bool) (stop func()) {
	if s.check(circuit) != nil {
		return func() {}
	}
	return s.feed.WatchMessages(s.key(circuit), func(k knownRecord) {
		if k.problem == nil { // a breaker receives the problem as the error of its next request
			fn(k.local())
		}
	}, loads)
}

// History implements Historian, in two round trips. Redis keeps the last MaxHistory
// events of a circuit, for a week after the last one. Unreadable events are left out.
func (s *RedisStorage) History(ctx context.Context, circuit string) ([]Event, error) {
	if err := s.check(circuit); err != nil {
		return nil, err
	}
	key := s.key(circuit)
	k, err := s.read(ctx, key)
	if err != nil {
		return nil, err
	}
	texts, err := historyScript.Run(ctx, s.client, []string{key + historySuffix}).StringSlice()
	switch {
	case redis.HasErrorPrefix(err, wrongType):
		return nil, &RecordError{circuit, "has a history that is a key of another type"}
	case err != nil:
		return nil, fmt.Errorf("infuse: redis: %w", err)
	}
	return k.events(texts), nil
}

// Circuits implements Lister. It scans all keys of the server, or of every master of a
// Cluster: use it in commands of operators, not repeatedly in a service.
func (s *RedisStorage) Circuits(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if s.invalid != nil {
			yield("", s.invalid)
			return
		}
		servers, err := scanners(ctx, s.client)
		if err != nil {
			yield("", err)
			return
		}
		for _, server := range servers {
			if !scanCircuits(ctx, server, s.prefix, yield) {
				return
			}
		}
	}
}

// Close stops the watching, and closes the connection of Pub/Sub. It waits for its
// goroutines for 1 s at most; if a hanging server blocks one for longer, Close returns an
// error. Load and Apply still work after Close. Stop the breakers first.
func (s *RedisStorage) Close() error {
	if !s.feed.Close() {
		return errors.New("infuse: closing RedisStorage: a request of the client is still blocked")
	}
	return nil
}

func (s *RedisStorage) invalidSettings() error { return s.invalid }

func (s *RedisStorage) check(circuit string) error {
	if s.invalid != nil {
		return s.invalid
	}
	return CheckName(circuit)
}

func (s *RedisStorage) key(circuit string) string { return redisKey(s.prefix, circuit) }

// redisChange is a change in progress. It is applied to the known record, again and
// again until Redis confirms that this was the current one.
type redisChange struct {
	Change   // the part that is not yet written
	original Change
	recorded bool // Redis has everything that the change reports: the record must be evaluated
	s        *RedisStorage
	circuit  string
	key      string
	round    int
	known    knownRecord
	fresh    bool // this change has read known
	refusals int  // consecutive refusals although known has the current version

	localNow   time.Time
	now        time.Time // by Redis's clock
	validUntil time.Time // until when next follows from the known record; zero: always
	next       Record    // the result, with times of Redis's clock
	verdict    Verdict
}

const (
	maxRounds    = 64
	maxRefused   = 8
	strictRounds = 4 // after these, a manual change ignores failures that others count meanwhile
)

// try makes the change if the known record is the current one. Otherwise it makes the
// current record the known one.
func (a *redisChange) try(ctx context.Context) (done bool, err error) {
	a.localNow = time.Now()
	a.now = a.known.now(a.localNow)
	c := a.original
	c.Seen = c.Seen.translated(a.localNow, a.now)
	c.Counted = translated(c.Counted, a.localNow, a.now)
	c.Override = c.Override.translated(a.localNow, a.now)
	base := a.known.record.At(a.now)
	base.restore(&c.Seen, a.now)
	step := base.step(&c.Calls, &c.Limits, a.now)
	if c.Calls.Failures == 0 && len(c.Counted) == 0 { // successes: see Record.addCalls
		step.lower = max(step.lower, 0)
	}
	a.validUntil = step.until
	a.next, a.verdict = a.known.record.applied(&c, a.recorded, a.now)
	switch {
	case a.verdict == VerdictRefused || a.nothingToWrite(base):
		if a.fresh {
			return true, nil
		}
		return false, a.read(ctx)
	case a.known.receivedAt.IsZero() && len(a.Counted) > 0: // their times cannot be converted before Redis's clock is known
		return false, a.read(ctx)
	case a.onlyCounts(base) && !step.reached(base.count()):
		return false, a.run(ctx, countScript, "g", a.generation(),
			step.add, flag(step.restarts), step.after, step.lower, step.upper,
			a.Limits.width().Milliseconds(), formatBuckets(nil, c.Counted))
	case a.known.receivedAt.IsZero(): // generations are made of Redis's time, which is not known yet
		return false, a.read(ctx)
	}
	return a.swap(ctx)
}

func (a *redisChange) generation() string { return strconv.FormatInt(a.known.record.Generation, 10) }

// nothingToWrite reports whether the change does not affect the record, and has nothing
// whose sequence number must be recorded.
func (a *redisChange) nothingToWrite(base Record) bool {
	reports := len(a.Settled) > 0 || a.counts() || a.Manual != nil || a.Override != nil
	return !reports && a.next.Generation == a.known.record.Generation && !base.waitsLess(a.known.record.At(a.now)) &&
		bytes.Equal(AppendRecord(nil, base, a.now), AppendRecord(nil, a.next.withoutNumbers(), a.now))
}

// onlyCounts reports whether the change only adds to the count.
func (a *redisChange) onlyCounts(base Record) bool {
	return a.counts() && !a.acts() && a.next.Generation == a.known.record.Generation && !base.waitsLess(a.known.record.At(a.now))
}

func (a *redisChange) swap(ctx context.Context) (done bool, err error) {
	// Redis stores the time in whole milliseconds: a wait must not end early.
	kept := a.next.withoutNumbers()
	kept.Window = Window{}
	text := AppendRecord(nil, kept, a.now.Add(-time.Millisecond))
	if _, err := ParseRecord(text, a.now); err != nil {
		return false, &RecordError{a.circuit, "cannot take the change: the new record " + err.Error()}
	}
	args := []any{a.next.Generation, a.next.count(), formatWindow(a.next.Window), text, ""}
	if a.verdict == VerdictChanged {
		args[4] = formatNotice(a.next.notice(&a.known.record))
	}
	field, seen := "v", a.known.version
	if a.round >= strictRounds && a.known.problem == nil && a.known.record.State == StateClosed {
		// A manual change must not wait for a pause in the failures of others.
		switch base := a.known.record.At(a.now); {
		case a.Manual != nil: // it resets all counts
			field, seen = "g", a.generation()
		case a.Override != nil && !a.counts() && a.next.State == StateClosed && a.next.suspect() == base.suspect():
			field, seen = "g", a.generation()
			args[1], args[2] = "", ""
		}
	}
	for _, e := range a.known.record.events(&a.next, &a.Change, a.now) {
		args = append(args, appendEvent(nil, &e))
	}
	err = a.run(ctx, swapScript, field, seen, args...)
	if err != nil || a.known.status != statusDone {
		return false, err
	}
	a.next = a.known.record // with the times that all others read
	return true, nil
}

// run runs a script, whose reply becomes the known record. After a change that was
// counted, or was a duplicate, the record is only evaluated (R13).
func (a *redisChange) run(ctx context.Context, script *redis.Script, field, seen string, rest ...any) error {
	life := milliseconds(a.next.keepUntil(a.now).Sub(a.now))
	args := append([]any{a.Source, a.number(), field, seen, roundedUp(a.validUntil), life}, rest...)
	before := a.known.version
	err := a.replied(a.s.run(ctx, script, []string{a.key, a.key + historySuffix}, args...))
	a.refusals++
	if a.known.version != before || a.known.status != statusRefused {
		a.refusals = 0
	}
	return err
}

// read reads the record, and whether the change is a duplicate.
func (a *redisChange) read(ctx context.Context) error {
	return a.replied(a.s.run(ctx, readScript, []string{a.key}, a.Source, a.number()))
}

// number returns the sequence number in the form that scripts compare.
func (a *redisChange) number() string {
	if a.Number == 0 {
		return ""
	}
	return fmt.Sprintf("%020d", a.Number)
}

func (a *redisChange) replied(k knownRecord, err error) error {
	if err != nil {
		return err
	}
	if k.status != statusRefused {
		a.Change, a.recorded = Change{Source: a.Source, Limits: a.Limits}, true
	}
	a.known, a.fresh = k, true
	a.s.known.put(a.key, k)
	return nil
}

// backOff waits, longer each time, and then reads the record: so processes that contend
// for a record succeed one by one.
func (a *redisChange) backOff(ctx context.Context) error {
	if a.round < 2 || a.known.status != statusRefused {
		return nil
	}
	time.Sleep(rand.N(time.Millisecond << min(a.round, 5)))
	return a.read(ctx)
}

func (s *RedisStorage) read(ctx context.Context, key string) (knownRecord, error) {
	k, err := s.run(ctx, readScript, []string{key}, "", "")
	if err == nil {
		s.known.put(key, k)
	}
	return k, err
}

func (s *RedisStorage) run(ctx context.Context, script *redis.Script, keys []string, args ...any) (knownRecord, error) {
	reply, err := script.Run(ctx, s.client, keys, args...).StringSlice()
	switch {
	case err != nil:
		s.findMaster(ctx)
		return knownRecord{}, fmt.Errorf("infuse: redis: %w", err)
	case len(reply) != 1+replyParts:
		return knownRecord{}, fmt.Errorf("infuse: redis: a script replied with %d values, not with %d", len(reply), 1+replyParts)
	}
	k := parseKnown([replyParts]string(reply[1:]), time.Now())
	k.status = reply[0]
	return k, nil
}

// findMaster makes the client of a Cluster reload the masters of the slots, in the
// background. By itself the client does so once a minute, or when a master redirects it:
// a dead master does not.
func (s *RedisStorage) findMaster(ctx context.Context) {
	if cluster, ok := s.client.(interface{ ReloadState(context.Context) }); ok {
		cluster.ReloadState(ctx)
	}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// historySuffix is added to the key of a circuit for the key of its history. No key of a
// circuit ends with it.
const historySuffix = ":log"
