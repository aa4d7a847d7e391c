package linearizability_test

// This file contains the clients, and the tests of storages.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	clients = 4
	steps   = 8 // per client
)

// history contains the operations of the clients on one circuit, with their times.
type history struct {
	circuit string
	limits  infuse.Limits
	counts  bool // the storage counts separately: see model.count
	start   time.Time

	mu   sync.Mutex
	done []porcupine.Operation
}

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

func (h *history) add(o operation, called int64, r result) {
	over := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, porcupine.Operation{ClientId: o.client, Input: o, Call: called, Output: r, Return: over})
	if h.counts && o.change.Calls != (infuse.Calls{}) {
		o.do = count
		h.done = append(h.done, porcupine.Operation{ClientId: o.client, Input: o, Call: called, Output: result{}, Return: over})
	}
}

// check runs the checker. It returns Unknown if that takes too long.
func (h *history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model{h.start}.porcupine(), h.done, 5*time.Second)
}

func (h *history) log(t *testing.T) {
	for _, o := range h.done {
		input, output := o.Input.(operation), o.Output.(result)
		if c := input.change; input.do == apply {
			move := ""
			if c.Manual != nil {
				move = c.Manual.To.String()
			}
			t.Logf("%8d–%8d client %d: number %d, seen %d, calls %+v, settled %v, move %q, ask %q → %d %s", o.Call/1000, o.Return/1000,
				o.ClientId, c.Number, c.Seen.Generation, c.Calls, c.Settled, move, c.RequestTrial, output.verdict, essence(output.record))
		} else if input.do == load {
			t.Logf("%8d–%8d client %d: load → %s", o.Call/1000, o.Return/1000, o.ClientId, essence(output.record))
		}
	}
}

// client makes random changes, one after another.
type client struct {
	*history
	storage infuse.Storage
	index   int
	random  *rand.Rand
	steps   int
	number  uint64
	seen    infuse.Record // the last record that it received
	last    infuse.Change
	trials  []string // granted and not settled yet
}

func (c *client) run() {
	for c.steps < steps {
		c.steps++
		o := operation{client: c.index, index: c.steps}
		if c.random.IntN(6) == 0 {
			called := c.now()
			record, err := c.storage.Load(context.Background(), c.circuit)
			c.returned(o, called, result{record: record}, err)
			continue
		}
		o.do = apply
		if c.number == 0 || c.random.IntN(6) > 0 {
			c.last = c.change()
		}
		o.change = c.last
		called := c.now()
		record, verdict, err := c.storage.Apply(context.Background(), c.circuit, o.change)
		c.returned(o, called, result{record, verdict}, err)
		if move := o.change.Manual; move != nil && move.To == infuse.StateOpen {
			time.Sleep(2 * time.Millisecond) // now it is ready for a trial
		}
		time.Sleep(time.Duration(c.random.IntN(30)) * time.Microsecond)
	}
}

func (c *client) returned(o operation, called int64, r result, err error) {
	if err != nil {
		panic(err) // Redis is available
	}
	c.add(o, called, r)
	c.seen = r.record
	ask := o.change.RequestTrial
	granted := slices.ContainsFunc(r.record.Trials, func(t infuse.Trial) bool { return t.ID == ask })
	if granted && !slices.Contains(c.trials, ask) {
		c.trials = append(c.trials, ask)
	}
}

// change returns a new change.
func (c *client) change() infuse.Change {
	c.number++
	change := infuse.Change{Source: fmt.Sprint("client-", c.index), Number: c.number, Seen: c.seen, Limits: c.limits}
	switch n := c.random.IntN(10); {
	case n < 5:
		outcomes := []string{"f", "f", "ff", "fff", "s", "fs", "sf", "fsff", "fffs"}
		change.Calls = calls(outcomes[c.random.IntN(len(outcomes))])
	case n == 5:
		change.Manual = &infuse.ManualState{To: infuse.State(c.random.IntN(3))}
	case n < 9 && len(c.trials) > 0:
		i := c.random.IntN(len(c.trials))
		change.Settled = []infuse.Settlement{{ID: c.trials[i], Outcome: infuse.Outcome(c.random.IntN(3))}}
		c.trials = slices.Delete(c.trials, i, i+1)
	default: // refused if the circuit is healthy
		change.RequestTrial = fmt.Sprintf("trial-%d-%d", c.index, c.number)
	}
	return change
}

// calls returns calls with these outcomes: f for a failure, s for a success.
func calls(outcomes string) (c infuse.Calls) {
	c.Failures, c.Successes = strings.Count(outcomes, "f"), strings.Count(outcomes, "s")
	c.Lead, c.Streak = c.Failures, c.Failures
	if c.Successes > 0 {
		c.Lead = strings.Index(outcomes, "s")
		c.Streak = len(outcomes) - 1 - strings.LastIndex(outcomes, "s")
	}
	return c
}

// record records a history: one client per storage changes the circuit concurrently.
func record(circuit string, storages []infuse.Storage, seed uint64) *history {
	random := rand.New(rand.NewPCG(seed, 0))
	h := &history{circuit: circuit, start: time.Now(), limits: infuse.Limits{
		FailMax: 1 + random.IntN(3), SuccessThreshold: 1 + random.IntN(2), MaxTrials: 1 + random.IntN(2),
		ResetTimeout: time.Millisecond, TrialTimeout: time.Hour, Suspicion: time.Hour, Window: time.Hour, MinCalls: 1,
	}}
	_, h.counts = storages[0].(*infuse.RedisStorage)
	var all sync.WaitGroup
	for i, storage := range storages {
		c := &client{history: h, storage: storage, index: i, random: rand.New(rand.NewPCG(seed, uint64(1+i)))}
		all.Go(c.run)
	}
	all.Wait()
	return h
}

func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("LINEARIZABILITY_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: LINEARIZABILITY_SEED=%d", seed)
	return seed
}

// inMemory returns a storage that all clients share.
func inMemory(wrap func(infuse.Storage) infuse.Storage) []infuse.Storage {
	return slices.Repeat([]infuse.Storage{wrap(infuse.NewMemoryStorage())}, clients)
}

// onRedis returns a storage for each client, each with its own connections.
func onRedis(t *testing.T, wrap func(*redis.Client) redis.UniversalClient) (storages []infuse.Storage) {
	t.Helper()
	s := redistest.Start(t)
	for range clients {
		storage := infuse.NewRedisStorage(wrap(s.Client()), infuse.RedisOptions{})
		t.Cleanup(func() { require.NoError(t, storage.Close()) })
		storages = append(storages, storage)
	}
	return storages
}

func TestMemoryStorageIsLinearizable(t *testing.T) {
	requireLinearizable(t, inMemory(func(s infuse.Storage) infuse.Storage { return s }), 300)
}

func TestRedisStorageIsLinearizable(t *testing.T) {
	requireLinearizable(t, onRedis(t, func(c *redis.Client) redis.UniversalClient { return c }), 150)
}

func requireLinearizable(t *testing.T, storages []infuse.Storage, histories int) {
	t.Helper()
	seed, unknown := seedOf(t), 0
	results := make(map[string]int)
	for i := range histories {
		h := record(fmt.Sprint("circuit ", i), storages, seed+uint64(i))
		for _, o := range h.done {
			if r := o.Output.(result); o.Input.(operation).do == apply {
				results[r.record.State.String()]++
				results[fmt.Sprint("verdict ", r.verdict)]++
				if r.record.Threshold > 0 {
					results[r.record.State.String()+" with a score"]++
				}
			}
		}
		switch h.check() {
		case porcupine.Unknown:
			unknown++
		case porcupine.Illegal:
			h.log(t)
			t.Fatalf("history %d, limits %+v, is not linearizable", i, h.limits)
		}
	}
	t.Logf("%d histories with these results: %v; %d histories took too long to check", histories, results, unknown)
	require.LessOrEqual(t, unknown, histories/20)
}

// requireCaught fails unless the checker detects a history that is not linearizable.
func requireCaught(t *testing.T, storages []infuse.Storage) {
	t.Helper()
	const histories = 300
	seed := seedOf(t)
	for i := range uint64(histories) {
		if record(fmt.Sprint("circuit ", i), storages, seed+i).check() == porcupine.Illegal {
			t.Logf("caught in history %d", i)
			return
		}
	}
	t.Fatalf("the checker has found nothing in %d histories", histories)
}

// The tests below show that the checker detects broken storages.

func TestDuplicatesAreDetected(t *testing.T) {
	requireCaught(t, inMemory(func(s infuse.Storage) infuse.Storage { return forgetful{s} }))
}

type forgetful struct{ infuse.Storage }

func (s forgetful) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	c.Number = 0
	return s.Storage.Apply(ctx, circuit, c)
}

func TestStaleRecordsAreDetected(t *testing.T) {
	requireCaught(t, inMemory(func(s infuse.Storage) infuse.Storage { return &stale{Storage: s} }))
}

// stale returns the record of the previous Load.
type stale struct {
	infuse.Storage
	before sync.Map // by circuit
}

func (s *stale) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	record, err := s.Storage.Load(ctx, circuit)
	if before, ok := s.before.Swap(circuit, record); ok {
		record = before.(infuse.Record)
	}
	return record, err
}

func TestNonAtomicChangesAreDetected(t *testing.T) {
	requireCaught(t, slices.Repeat([]infuse.Storage{&careless{records: make(map[string]infuse.Record)}}, clients))
}

// careless loads, applies and saves without a transaction.
type careless struct {
	mu      sync.Mutex
	records map[string]infuse.Record
}

func (s *careless) Load(_ context.Context, circuit string) (infuse.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[circuit].At(time.Now()), nil
}

func (s *careless) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	record, _ := s.Load(ctx, circuit)
	record, verdict := record.Apply(c, time.Now())
	time.Sleep(rand.N(time.Millisecond)) // a round trip to a database
	if verdict != infuse.VerdictRefused {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.records[circuit] = record
	}
	return record, verdict, nil
}

func (s *careless) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

func TestSwapWithoutComparisonIsDetected(t *testing.T) {
	testEdited(t, "replaces a record", "is ~= ARGV[4]", "is ~= ARGV[4] and ARGV[4] == ''")
}

func TestDoubleCountIsDetected(t *testing.T) {
	testEdited(t, "adds to the count", "before + add", "before + 2 * add")
}

func testEdited(t *testing.T, script, from, to string) {
	requireCaught(t, onRedis(t, func(c *redis.Client) redis.UniversalClient { return editor{c, script, from, to} }))
}

// editor edits a script before it is sent to Redis.
type editor struct {
	*redis.Client
	script, from, to string
}

func (e editor) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(noScript{})
	return cmd
}

// noScript is the error of Redis after which go-redis sends the whole script.
type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT use EVAL" }
func (noScript) RedisError()   {}

func (e editor) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	if strings.Contains(script, e.script) {
		if strings.Count(script, e.from) != 1 {
			panic("the script does not contain exactly once: " + e.from)
		}
		script = strings.Replace(script, e.from, e.to, 1)
	}
	return e.Client.Eval(ctx, script, keys, args...)
}
