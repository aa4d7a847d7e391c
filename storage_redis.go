package infuse

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisClient is what RedisStorage needs of a go-redis v9 client. Those for a
// single server, for Sentinel and for a Cluster have it.
type RedisClient interface {
	redis.Scripter
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// RedisOptions are the settings of a RedisStorage. The zero value is ready to use.
type RedisOptions struct {
	// Prefix starts the name of every key and channel: "infuse:" if empty.
	Prefix string

	// PollInterval is how often a circuit is read while Pub/Sub does not reach
	// it, and while it is not closed: 2 s if 0, each time give or take half.
	// So it bounds what a lost message costs, as long as Redis answers:
	//   - where Pub/Sub is not permitted or its connection was cut, a
	//     transition is known after one and a half intervals;
	//   - where the connection died without a sign, that is noticed 4 s later;
	//   - that a circuit was closed, or its record lost, is known after one and
	//     a half intervals in any case;
	//   - a closed circuit that Pub/Sub does reach is read each fifteenth time,
	//     in case a message was lost all the same.
	PollInterval time.Duration
}

// RedisStorage keeps circuits in Redis, for all processes that use the same
// server (or Cluster) and Prefix. Every change is one run of one script on
// one key; transitions reach the other processes by Pub/Sub.
//
// It starts two goroutines and one connection of its own when the first
// circuit is watched, and stops them on Close. The client stays its caller's.
//
// A circuit's record is the hash <Prefix>{<circuit>}, the name in the form of
// url.QueryEscape. A healthy circuit has none; one that has just closed keeps
// its record for some seconds, and until it would have been due, so that who
// missed the closing does not take it for a loss. Redis's own clock is the only
// one that counts.
//
// Whoever may write these keys, or publish on these channels, can move the
// circuits. A message alone can do so for an hour at most.
type RedisStorage struct {
	client  RedisClient
	prefix  string
	linger  time.Duration
	feed    *redisFeed
	guard   *guard
	invalid error // what is wrong with the settings
}

//go:embed circuit.lua
var circuitSource string

var circuitScript = redis.NewScript(circuitSource)

// NewRedisStorage returns a storage on the client. It does no I/O. What is
// wrong with the client or the options is the error of every use, and so of
// New.
func NewRedisStorage(client RedisClient, opts RedisOptions) *RedisStorage {
	if opts.Prefix == "" {
		opts.Prefix = "infuse:"
	}
	s := &RedisStorage{client: client, prefix: opts.Prefix, guard: newGuard()}
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
	s.linger = 2*opts.PollInterval + 2*pingAfter + time.Second // whoever missed that it closed has noticed by then
	s.feed = newRedisFeed(s, opts.PollInterval)
	return s
}

// Load implements Storage, in one round trip.
func (s *RedisStorage) Load(ctx context.Context, circuit string) (Record, error) {
	record, _, err := s.run(ctx, circuit, "load", Change{})
	return record, err
}

// Apply implements Storage, in one round trip.
func (s *RedisStorage) Apply(ctx context.Context, circuit string, c Change) (Record, Verdict, error) {
	if int(c.Kind) >= len(changeNames) {
		return Record{}, VerdictRefused, fmt.Errorf("infuse: a change has the unknown kind %d", c.Kind)
	}
	if c.Kind != ChangeSync {
		if err := checkToken(c.Token); err != nil {
			return Record{}, VerdictRefused, err
		}
	}
	return s.run(ctx, circuit, changeNames[c.Kind], c)
}

// Watch implements Storage.
func (s *RedisStorage) Watch(circuit string, fn func(Record)) (stop func()) {
	if s.check(circuit) != nil {
		return func() {}
	}
	return s.feed.watch(circuit, fn)
}

// Close stops watching. It waits for what is under way, for a second at most;
// a server that hangs may hold a goroutine of go-redis's for longer. Load and
// Apply go on to work.
func (s *RedisStorage) Close() error { return s.feed.close() }

func (s *RedisStorage) storageGuard() *guard { return s.guard }

func (s *RedisStorage) invalidSettings() error { return s.invalid }

var changeNames = [...]string{
	ChangeSync: "sync", ChangeReport: "report", ChangeAcquire: "acquire",
	ChangeSettle: "settle", ChangeMove: "move",
}

func (s *RedisStorage) check(circuit string) error {
	if s.invalid != nil {
		return s.invalid
	}
	return CheckName(circuit)
}

// key is the circuit's hash and channel. url.QueryEscape leaves nothing in a
// name that could end the hash tag, and no two names alike.
func (s *RedisStorage) key(circuit string) string {
	return s.prefix + "{" + url.QueryEscape(circuit) + "}"
}

func (s *RedisStorage) run(ctx context.Context, circuit, kind string, c Change) (Record, Verdict, error) {
	if err := s.check(circuit); err != nil {
		return Record{}, VerdictRefused, err
	}
	cleared := 0
	if c.Cleared {
		cleared = 1
	}
	reply, err := circuitScript.Run(ctx, s.client, []string{s.key(circuit)},
		kind, c.Token,
		encodeRecord(c.Seen, time.Now()),
		c.Limits.FailMax, milliseconds(c.Limits.ResetTimeout), c.Limits.SuccessThreshold,
		c.Limits.MaxTrials, milliseconds(c.Limits.TrialTimeout),
		c.Failures, cleared, c.FailuresAfter,
		int(c.Outcome), int(c.To),
		milliseconds(s.linger), milliseconds(idleLife),
	).Slice()
	if err != nil {
		s.findMaster(ctx)
		return Record{}, VerdictRefused, redisError(circuit, err)
	}
	record, verdict, err := decodeReply(reply, time.Now())
	if err != nil {
		err = &RecordError{circuit, err.Error()}
	}
	return record, verdict, err
}

// findMaster has the client of a Cluster look, in the background, which master
// has which slot. By itself it does so once a minute, or when another master
// tells: a dead one does not.
func (s *RedisStorage) findMaster(ctx context.Context) {
	if cluster, ok := s.client.(interface{ ReloadState(context.Context) }); ok {
		cluster.ReloadState(ctx)
	}
}

// checkToken keeps what separates tokens out of them: see circuit.lua.
func checkToken(token string) error {
	if token == "" || len(token) > 64 || strings.ContainsAny(token, "=, \r\n") {
		return fmt.Errorf("infuse: the token %.80q is empty, has more than 64 bytes, or one of space, comma, equals sign", token)
	}
	return nil
}

// milliseconds rounds up: a storage never waits less than it was told to.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func redisError(circuit string, err error) error {
	if reason, ok := strings.CutPrefix(err.Error(), "BADRECORD "); ok {
		return &RecordError{circuit, reason}
	}
	return fmt.Errorf("infuse: redis: %w", err)
}

// The record on its way: replies of the script and messages, both of which a
// stranger may have written.

const (
	recordSchema     = 1
	maxRecordLength  = 1 << 20
	maxRecordInteger = 1 << 52 // Lua's numbers are whole up to twice that
)

// encodeRecord writes the line that circuit.lua describes.
func encodeRecord(r Record, now time.Time) string {
	trials := make([]string, len(r.Trials))
	for i, t := range r.Trials {
		trials[i] = fmt.Sprintf("%s=%d", t.ID, milliseconds(max(0, t.Deadline.Sub(now))))
	}
	if len(trials) == 0 {
		trials = []string{"-"}
	}
	var left int64
	if r.State == StateOpen {
		left = milliseconds(max(0, r.DueAt.Sub(now)))
	}
	return fmt.Sprintf("%d %d %d %d %d %d %s", recordSchema,
		r.State, r.Generation, r.Failures, r.Successes, left, strings.Join(trials, ","))
}

func decodeReply(reply []any, now time.Time) (Record, Verdict, error) {
	if len(reply) != 4 {
		return Record{}, VerdictRefused, fmt.Errorf("came as %d values, not as 4", len(reply))
	}
	verdict, ok1 := reply[0].(int64)
	line, ok2 := reply[2].(string)
	tokens, ok3 := reply[3].(string)
	if !ok1 || !ok2 || !ok3 || verdict < 0 || verdict > int64(VerdictMoved) {
		return Record{}, VerdictRefused, errors.New("came in values of other types than the script's")
	}
	record, err := decodeRecord(line, now)
	if tokens != "" {
		record.Tokens = strings.Split(tokens, ",")
	}
	return record, Verdict(verdict), err
}

// decodeRecord reads the line that circuit.lua describes.
func decodeRecord(line string, now time.Time) (Record, error) {
	if len(line) > maxRecordLength {
		return Record{}, fmt.Errorf("has %d bytes", len(line))
	}
	fields := strings.Split(line, " ")
	if fields[0] != strconv.Itoa(recordSchema) {
		return Record{}, fmt.Errorf("has schema %.20q, not %d", fields[0], recordSchema)
	}
	if len(fields) != 7 {
		return Record{}, fmt.Errorf("has %d fields, not 7", len(fields))
	}
	var numbers [5]int64
	for i := range numbers {
		n, err := decodeInteger(fields[i+1])
		if err != nil {
			return Record{}, err
		}
		numbers[i] = n
	}
	if numbers[0] > int64(StateHalfOpen) {
		return Record{}, fmt.Errorf("has no state of the number %d", numbers[0])
	}
	if numbers[1] > now.AddDate(100, 0, 0).UnixMilli() {
		// It follows the storage's clock. One that a stranger made up would
		// stand above all to come.
		return Record{}, fmt.Errorf("has the generation %d, of the far future", numbers[1])
	}
	if max(numbers[2], numbers[3]) > math.MaxInt32 {
		return Record{}, errors.New("has counts beyond any limit")
	}
	record := Record{
		State:      State(numbers[0]),
		Generation: numbers[1],
		Failures:   int(numbers[2]),
		Successes:  int(numbers[3]),
	}
	if record.State == StateOpen {
		record.DueAt = now.Add(wait(numbers[4]))
	}
	var err error
	record.Trials, err = decodeTrials(fields[6], now)
	return record, err
}

func decodeTrials(field string, now time.Time) ([]Trial, error) {
	if field == "-" {
		return nil, nil
	}
	var trials []Trial
	for _, part := range strings.Split(field, ",") {
		id, left, ok := strings.Cut(part, "=")
		n, err := decodeInteger(left)
		if !ok || err != nil || checkToken(id) != nil || len(trials) == maxMaxTrials {
			return nil, fmt.Errorf("has trials that cannot be read: %.80q", field)
		}
		trials = append(trials, Trial{id, now.Add(wait(n))})
	}
	return trials, nil
}

func decodeInteger(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxRecordInteger {
		return 0, fmt.Errorf("has %.20q where a whole number belongs", s)
	}
	return n, nil
}

// wait bounds what a stranger's record can make this process wait for.
func wait(ms int64) time.Duration {
	return time.Duration(min(ms, maxTimeout.Milliseconds())) * time.Millisecond
}
