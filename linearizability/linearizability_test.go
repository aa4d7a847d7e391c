package linearizability_test

import (
	"context"
	"errors"
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
	histories = 400
	clients   = 5
	steps     = 10 // of each client
)

var (
	errFailed  = errors.New("failed")
	errIgnored = errors.New("ignored")
)

// history is what some clients did to one circuit, and when.
type history struct {
	limits infuse.Limits
	start  time.Time

	mu      sync.Mutex
	permits int
	done    []porcupine.Operation
}

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

func (h *history) permit() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.permits++
	return h.permits
}

func (h *history) note(client int, s step, called int64, a answer) {
	over := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, porcupine.Operation{ClientId: client, Input: s, Call: called, Output: a, Return: over})
}

// check tells whether a single record could have had this history. It is
// unknown where the checker would take too long to tell.
func (h *history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model(h.limits), h.done, 5*time.Second)
}

// client does the steps of its own, one after the other, on processes of its own.
type client struct {
	*history
	number  int
	start   func() *infuse.Breaker // starts another process
	current *process
	roll    *rand.Rand
	held    []heldPermit
}

// process is a breaker, and how many failures it may come to. At FailMax in a
// row the circuit of the process itself opens, and then it says nothing of the
// shared record: it rejects calls that this would admit, and asks for trials of
// its own. So a client goes on with another process before.
type process struct {
	breaker  *infuse.Breaker
	failures int // so far, and of the permits that are held
}

type heldPermit struct {
	infuse.Permit
	process *process
	number  int
	asked   int64
}

// process returns one that may fail once more.
func (c *client) process() *process {
	if c.current == nil || c.current.failures+1 >= c.limits.FailMax {
		c.current = &process{breaker: c.start()}
	}
	return c.current
}

func (c *client) run() {
	for range steps {
		switch n := c.roll.IntN(10); {
		case n == 0:
			c.move()
		case n < 5 && len(c.held) < 2 || len(c.held) == 0:
			c.acquire()
		default:
			c.settle()
		}
	}
	for len(c.held) > 0 {
		c.settle()
	}
}

func (c *client) acquire() {
	s := step{do: acquire, permit: c.permit()}
	process := c.process()
	called := c.now()
	p, err := process.breaker.Acquire(context.Background())
	var rejection *infuse.OpenError
	if errors.As(err, &rejection) {
		if rejection.Local {
			panic("the process's own circuit is open: it says nothing of the shared one")
		}
		c.note(c.number, s, called, answer{state: rejection.State})
		return
	}
	c.note(c.number, s, called, answer{admitted: true})
	process.failures++
	c.held = append(c.held, heldPermit{p, process, s.permit, called})
}

func (c *client) settle() {
	i := c.roll.IntN(len(c.held))
	p := c.held[i]
	c.held = append(c.held[:i], c.held[i+1:]...)
	outcome := infuse.Outcome(c.roll.IntN(3))
	called := c.now()
	p.Done([]error{nil, errFailed, errIgnored}[outcome])
	if outcome != infuse.OutcomeFailure {
		p.process.failures--
	}
	if outcome == infuse.OutcomeSuccess {
		// A success is news only if there were failures when the call began:
		// so it may count as of any time since then.
		called = p.asked
	}
	c.note(c.number, step{do: settle, permit: p.number, outcome: outcome}, called, answer{})
}

func (c *client) move() {
	// Half-open rather than not: nothing else gets a circuit out of open here.
	to := []infuse.State{infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen, infuse.StateHalfOpen}[c.roll.IntN(4)]
	b := c.process().breaker
	called := c.now()
	if err := b.Move(context.Background(), to); err != nil {
		panic(err) // the Redis is a healthy one
	}
	c.note(c.number, step{do: move, to: to}, called, answer{})
}

// record has the clients, one for each storage, use a circuit at random. In
// every other history it opens at once, so that no time passes at all and each
// count tells; in the others it becomes suspect first, for as short as can be.
func record(t *testing.T, name string, storages []infuse.Storage, seed uint64) *history {
	t.Helper()
	roll := rand.New(rand.NewPCG(seed, 0))
	h := &history{start: time.Now(), limits: infuse.Limits{
		FailMax: 2 + roll.IntN(3), SuccessThreshold: 1 + roll.IntN(2), MaxTrials: 1 + roll.IntN(2),
		ResetTimeout: time.Hour, TrialTimeout: time.Hour, Suspicion: time.Millisecond,
	}}
	if atOnce := seed%2 == 0; atOnce {
		h.limits.Suspicion = 0
		storages = slices.Clone(storages)
		for i := range storages {
			storages[i] = hasty{storages[i]}
		}
	}
	var all sync.WaitGroup
	for i, storage := range storages {
		start := func() *infuse.Breaker {
			b, err := infuse.New(name, h.config(storage))
			if err != nil {
				panic(err)
			}
			t.Cleanup(b.Stop)
			return b
		}
		c := &client{history: h, number: i, start: start, roll: rand.New(rand.NewPCG(seed, uint64(1+i)))}
		all.Go(c.run)
	}
	all.Wait()
	return h
}

func (h *history) config(storage infuse.Storage) infuse.Config {
	return infuse.Config{
		FailMax: h.limits.FailMax, SuccessThreshold: h.limits.SuccessThreshold, MaxTrials: h.limits.MaxTrials,
		ResetTimeout: h.limits.ResetTimeout, TrialTimeout: h.limits.TrialTimeout, Suspicion: h.limits.Suspicion,
		Storage: storage, Strict: true, StorageTimeout: time.Minute,
		Classify: func(_ context.Context, err error) infuse.Outcome {
			switch err {
			case nil:
				return infuse.OutcomeSuccess
			case errFailed:
				return infuse.OutcomeFailure
			}
			return infuse.OutcomeIgnored
		},
	}
}

// hasty has circuits open without a suspicion.
type hasty struct{ infuse.Storage }

func (h hasty) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	c.Limits.Suspicion = 0
	return h.Storage.Apply(ctx, circuit, c)
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

// onRedis returns a storage with a client of its own for each process.
func onRedis(t *testing.T, wrap func(*redis.Client) infuse.RedisClient) (storages []infuse.Storage) {
	t.Helper()
	s := redistest.Start(t)
	for range clients {
		storage := infuse.NewRedisStorage(wrap(s.Client()), infuse.RedisOptions{})
		t.Cleanup(func() { require.NoError(t, storage.Close()) })
		storages = append(storages, storage)
	}
	return storages
}

func TestStrictIsLinearizable(t *testing.T) {
	seed := seedOf(t)
	storages := onRedis(t, func(c *redis.Client) infuse.RedisClient { return c })
	operations, rejections, unknown := 0, 0, 0
	for i := range uint64(histories) {
		h := record(t, fmt.Sprint("circuit ", i), storages, seed+i)
		operations += len(h.done)
		rejections += h.rejections()
		switch h.check() {
		case porcupine.Unknown:
			unknown++
		case porcupine.Illegal:
			for _, o := range h.done {
				t.Logf("%8d–%8d client %d: %+v → %+v", o.Call/1000, o.Return/1000, o.ClientId, o.Input, o.Output)
			}
			t.Fatalf("history %d, limits %+v, is not linearizable", i, h.limits)
		}
	}
	t.Logf("%d histories, %d operations, %d rejections among them; %d histories took too long to check", histories, operations, rejections, unknown)
	require.Less(t, unknown, histories/20)
}

func (h *history) rejections() (n int) {
	for _, o := range h.done {
		if o.Input.(step).do == acquire && !o.Output.(answer).admitted {
			n++
		}
	}
	return n
}

// requireCaught fails the test unless the checker finds one of the histories
// at fault.
func requireCaught(t *testing.T, storages func(history uint64) []infuse.Storage) {
	t.Helper()
	seed := seedOf(t)
	for i := range uint64(histories) {
		if record(t, fmt.Sprint("circuit ", i), storages(i), seed+i).check() == porcupine.Illegal {
			t.Logf("caught in history %d", i)
			return
		}
	}
	t.Fatalf("%d histories, and the checker has found nothing", histories)
}

// The checker can fail: it catches a script that replaces a record which is
// not the one that the sender has seen.
func TestASwapThatDoesNotCompareIsCaught(t *testing.T) {
	testEdited(t, "Replaces a record", "is ~= seen", "is ~= seen and seen == ''")
}

// It catches a script that counts twice.
func TestACountThatCountsTwiceIsCaught(t *testing.T) {
	testEdited(t, "Adds to the count", "before + add", "before + 2 * add")
}

func testEdited(t *testing.T, script, from, to string) {
	storages := onRedis(t, func(c *redis.Client) infuse.RedisClient { return editor{c, script, from, to} })
	requireCaught(t, func(uint64) []infuse.Storage { return storages })
}

// editor changes a script on its way to Redis.
type editor struct {
	*redis.Client
	script, from, to string
}

func (e editor) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(noScript{})
	return cmd
}

// noScript is Redis's error that makes go-redis send the script itself.
type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT it goes by Eval" }
func (noScript) RedisError()   {}

func (e editor) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	if strings.Contains(script, e.script) {
		if strings.Count(script, e.from) != 1 {
			panic("the script does not say once " + e.from)
		}
		script = strings.Replace(script, e.from, e.to, 1)
	}
	return e.Client.Eval(ctx, script, keys, args...)
}

// And it catches a storage that loads, applies and saves, but not atomically.
func TestAStorageThatIsNotAtomicIsCaught(t *testing.T) {
	requireCaught(t, func(uint64) []infuse.Storage {
		shared := &careless{}
		storages := make([]infuse.Storage, clients)
		for i := range storages {
			storages[i] = shared
		}
		return storages
	})
}

// careless keeps one circuit.
type careless struct {
	mu     sync.Mutex
	record infuse.Record
}

func (s *careless) Load(context.Context, string) (infuse.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.At(time.Now()), nil
}

func (s *careless) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	record, _ := s.Load(ctx, circuit)
	record, verdict := record.Apply(c, time.Now())
	time.Sleep(rand.N(time.Millisecond)) // on its way to the database and back
	if verdict != infuse.VerdictRefused {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.record = record
	}
	return record, verdict, nil
}

func (s *careless) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }
