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
	// Prefix starts the name of every key and channel: "infuse:" if empty.
	Prefix string

	// PollInterval is how often, ± 50 %, a circuit is read that rejects calls or is
	// forced open or closed, and any circuit while Pub/Sub does not reach it.
	// Default 2 s, at least 1 ms. If Pub/Sub is not permitted, or its connection
	// was cut, a process receives a transition within 1.5 intervals, as long as
	// Redis answers. A connection that died without a sign is noticed within 4 s
	// more. If Redis lost a circuit that rejects calls, or an override, it is
	// restored within 1.5 intervals.
	//
	// Any other circuit is read as well, because a message can be lost: after an
	// interval if it has changed, then less and less often, and at least every
	// 15 intervals.
	PollInterval time.Duration
}

// RedisStorage keeps circuits in Redis, for all processes that use the same
// server (or Cluster), database and Prefix. A failure is counted in one round
// trip, and so is a transition if this process knew the record; otherwise it takes
// two. A message of Pub/Sub has the other processes read a record that was moved.
// All methods are safe for concurrent use.
//
// It starts two goroutines and one connection of its own when the first
// circuit is watched, and stops them on Close. The client stays its caller's.
//
// A circuit's record is the hash <Prefix>{<circuit>}, the name in the form of
// url.QueryEscape. It is kept for an hour after all that it waits for. Redis's
// own clock is the only one that counts.
//
// Whoever may write these keys can move the circuits. A message moves none: at most it
// has the record read, or the next success reported.
type RedisStorage struct {
	client  redis.UniversalClient
	prefix  string
	known   knownRecords
	feed    *feed.Feed[knownRecord]
	invalid error // what is wrong with the settings
}

// Two scripts change a record, and neither knows what a circuit is. The one
// adds to its count, the other replaces it if it is still the one that was
// seen: what becomes of it is Record.Apply's business, in this process. A third
// one reads, and has no command that writes.
//
// The hash has the fields
//
//	v          the version, raised by each write
//	g          the record's generation
//	r1, r2…    the bytes of AppendRecord, 64 in each; none for a zero Record
//	r          these bytes, if they are more than 512
//	t          when these were written, in milliseconds of Redis's clock
//	n          the record's count, in place of the one in the record
//	w          the record's window, in place of the one in the record
//	s:<source> the highest number of that source, and when it was used last
var (
	//go:embed read.lua
	readSource string
	//go:embed write.lua
	writeSource string
	//go:embed count.lua
	countSource string
	//go:embed swap.lua
	swapSource string

	readScript = redis.NewScript(readSource + `
return reply(duplicate() and '2' or '0', version(), old[2], old[3], old[4], old[5], record())`)
	countScript = redis.NewScript(readSource + writeSource + countSource)
	swapScript  = redis.NewScript(readSource + writeSource + swapSource)

	historyScript = redis.NewScript("return redis.pcall('LRANGE', KEYS[1], 0, 49)")
)

// NewRedisStorage returns a storage on the client. It does no I/O. What is
// wrong with the client or the options is the error of every use, and so of
// New.
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

// Load implements Storage, in one round trip. It runs a script, because a
// client may send plain reads to a replica.
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

// Apply implements Storage.
func (s *RedisStorage) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	err := s.check(circuit)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return Record{}, VerdictRefused, err
	}
	a := redisChange{s: s, circuit: circuit, key: s.key(circuit), Change: c, whole: c}
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
			return a.next.withoutNumbers().translated(a.now, a.here), a.verdict, nil
		}
		if a.refused >= maxRefused {
			return Record{}, VerdictRefused, &RecordError{circuit, "takes no change, though nobody changes it"}
		}
		if err := a.backOff(ctx); err != nil {
			return Record{}, VerdictRefused, err
		}
	}
	return Record{}, VerdictRefused, fmt.Errorf("infuse: redis: circuit %q changed %d times while a change of it was made", circuit, maxRounds)
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
		if k.problem == nil { // else the breaker finds out when it asks
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
// Cluster: use it in operators' commands, not in a service that calls it repeatedly.
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

// Close stops watching. It waits for what is under way, for a second at most;
// a server that hangs may hold a goroutine of go-redis's for longer, and that is
// the error. Load and Apply go on to work. Stop the breakers first.
func (s *RedisStorage) Close() error {
	if !s.feed.Close() {
		return errors.New("infuse: closing the Redis storage: the client still waits for Redis")
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

// redisChange is a change on its way. It is tried on the record that is known
// until Redis agrees that this was the present one.
type redisChange struct {
	Change         // what is yet to be written of it
	whole   Change // as it was sent
	made    bool   // all that it reports is on record: the record is to be evaluated
	s       *RedisStorage
	circuit string
	key     string
	round   int
	known   knownRecord
	fresh   bool // known was read by this change
	refused int  // so often in a row, though the version was the one that is known

	here    time.Time // this process's time
	now     time.Time // Redis's
	holds   time.Time // until when what is made of the known record is right; zero: always
	next    Record    // as it is to be, on Redis's clock
	verdict Verdict
}

const (
	maxRounds    = 64
	maxRefused   = 8
	strictRounds = 4 // after these, a little of a change is given up for it to be made while others count
)

// try makes the change if the known record is the present one. If not, it is
// the present one afterwards.
func (a *redisChange) try(ctx context.Context) (done bool, err error) {
	a.here = time.Now()
	a.now = a.known.now(a.here)
	c := a.whole
	c.Seen = c.Seen.translated(a.here, a.now)
	c.Counted = translated(c.Counted, a.here, a.now)
	c.Override = c.Override.translated(a.here, a.now)
	base := a.known.record.At(a.now)
	base.restore(&c.Seen, a.now)
	step := base.step(&c.Calls, &c.Limits, a.now)
	a.holds = step.until
	a.next, a.verdict = a.known.record.applied(&c, a.made, a.now)
	switch {
	case a.verdict == VerdictRefused || a.nothingToWrite(base):
		if a.fresh {
			return true, nil
		}
		return false, a.read(ctx)
	case a.known.at.IsZero() && len(a.Counted) > 0: // when they were is not known on Redis's clock yet
		return false, a.read(ctx)
	case a.onlyCounts(base) && !step.reached(base.count()):
		return false, a.run(ctx, countScript, "g", a.generation(),
			step.add, flag(step.restarts), step.after, step.lower, step.upper,
			a.Limits.width().Milliseconds(), formatBuckets(nil, c.Counted))
	case a.known.at.IsZero(): // generations follow Redis's time, which is not known yet
		return false, a.read(ctx)
	}
	return a.swap(ctx)
}

func (a *redisChange) generation() string { return strconv.FormatInt(a.known.record.Generation, 10) }

// nothingToWrite reports that the change leaves the record as it is, and says
// nothing that would have to be remembered. Successes without failures on record do not.
func (a *redisChange) nothingToWrite(base Record) bool {
	says := len(a.Settled) > 0 || a.counts() && (a.Calls.Failures > 0 || len(a.Counted) > 0 || base.count() > 0) || a.Manual != nil || a.Override != nil
	return !says && a.next.Generation == a.known.record.Generation && !base.waitsLess(a.known.record.At(a.now)) &&
		bytes.Equal(AppendRecord(nil, base, a.now), AppendRecord(nil, a.next.withoutNumbers(), a.now))
}

// onlyCounts reports that the change does no more than to add to the count.
func (a *redisChange) onlyCounts(base Record) bool {
	return a.counts() && !a.acts() && a.next.Generation == a.known.record.Generation && !base.waitsLess(a.known.record.At(a.now))
}

func (a *redisChange) swap(ctx context.Context) (done bool, err error) {
	// Redis dates it by whole milliseconds, and nothing is to be due early.
	kept := a.next.withoutNumbers()
	kept.Window = Window{}
	text := AppendRecord(nil, kept, a.now.Add(-time.Millisecond))
	if _, err := ParseRecord(text, a.now); err != nil {
		return false, &RecordError{a.circuit, "leaves no room for the change, which " + err.Error()}
	}
	args := []any{a.next.Generation, a.next.count(), formatWindow(a.next.Window), text, ""}
	if a.verdict == VerdictChanged {
		args[4] = formatNotice(a.next.notice(&a.known.record))
	}
	field, seen := "v", a.known.version
	if a.round >= strictRounds && a.known.problem == nil && a.known.record.State == StateClosed {
		// What is done by hand is not to wait until failures pause.
		switch base := a.known.record.At(a.now); {
		case a.Manual != nil: // it forgets what was counted
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
	a.next = a.known.record // its times as all others read them
	return true, nil
}

// run runs a script. What it replies is known then. A change that was counted,
// or heard before, has nothing more to say: the record is only to be judged.
func (a *redisChange) run(ctx context.Context, script *redis.Script, field, seen string, rest ...any) error {
	life := milliseconds(a.next.keepUntil(a.now).Sub(a.now))
	args := append([]any{a.Source, a.number(), field, seen, roundedUp(a.holds), life}, rest...)
	before := a.known.version
	err := a.replied(a.s.run(ctx, script, []string{a.key, a.key + historySuffix}, args...))
	a.refused++
	if a.known.version != before || a.known.status != statusRefused {
		a.refused = 0
	}
	return err
}

// read reads what has become of the record, and whether the change was made before.
func (a *redisChange) read(ctx context.Context) error {
	return a.replied(a.s.run(ctx, readScript, []string{a.key}, a.Source, a.number()))
}

// number is the change's sequence number as scripts compare it.
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
		a.Change, a.made = Change{Source: a.Source, Limits: a.Limits}, true
	}
	a.known, a.fresh = k, true
	a.s.known.put(a.key, k)
	return nil
}

// backOff lets those that contend for a record go one by one: each waits for
// longer than the last time, and then reads what has become of the record.
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

// findMaster has the client of a Cluster look, in the background, which master
// has which slot. By itself it does so once a minute, or when another master
// tells: a dead one does not.
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

// historySuffix makes the list's key of the hash's. No circuit's key ends so.
const historySuffix = ":log"
