package linearizability_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
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

// linearizable reports whether a single record could have had this history.
func (h *history) linearizable() bool { return porcupine.CheckOperations(model(h.limits), h.done) }

// client is one process's side of a history.
type client struct {
	*history
	number  int
	breaker *infuse.Breaker
	roll    *rand.Rand
	held    []heldPermit
}

type heldPermit struct {
	infuse.Permit
	number int
	asked  int64
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
	called := c.now()
	p, err := c.breaker.Acquire(context.Background())
	var rejection *infuse.OpenError
	if errors.As(err, &rejection) {
		c.note(c.number, s, called, answer{state: rejection.State})
		return
	}
	c.note(c.number, s, called, answer{admitted: true})
	c.held = append(c.held, heldPermit{p, s.permit, called})
}

func (c *client) settle() {
	i := c.roll.IntN(len(c.held))
	p := c.held[i]
	c.held = append(c.held[:i], c.held[i+1:]...)
	outcome := infuse.Outcome(c.roll.IntN(3))
	called := c.now()
	p.Done([]error{nil, errFailed, errIgnored}[outcome])
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
	do := map[infuse.State]func(context.Context) error{
		infuse.StateClosed: c.breaker.Close, infuse.StateOpen: c.breaker.Open, infuse.StateHalfOpen: c.breaker.HalfOpen,
	}[to]
	called := c.now()
	if err := do(context.Background()); err != nil {
		panic(err) // the Redis is a healthy one
	}
	c.note(c.number, step{do: move, to: to}, called, answer{})
}

// record has the clients, one for each storage, use a circuit at random.
func record(t *testing.T, name string, storages []infuse.Storage, seed uint64) *history {
	t.Helper()
	roll := rand.New(rand.NewPCG(seed, 0))
	h := &history{start: time.Now(), limits: infuse.Limits{
		FailMax: 1 + roll.IntN(3), SuccessThreshold: 1 + roll.IntN(2), MaxTrials: 1 + roll.IntN(2),
		ResetTimeout: time.Hour, TrialTimeout: time.Hour,
	}}
	var all sync.WaitGroup
	for i, storage := range storages {
		b, err := infuse.New(name, infuse.Config{
			FailMax: h.limits.FailMax, SuccessThreshold: h.limits.SuccessThreshold, MaxTrials: h.limits.MaxTrials,
			ResetTimeout: h.limits.ResetTimeout, TrialTimeout: h.limits.TrialTimeout,
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
		})
		require.NoError(t, err)
		defer b.Stop()
		c := &client{history: h, number: i, breaker: b, roll: rand.New(rand.NewPCG(seed, uint64(1+i)))}
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
	operations, rejections := 0, 0
	for i := range uint64(histories) {
		h := record(t, fmt.Sprint("circuit ", i), storages, seed+i)
		operations += len(h.done)
		rejections += h.rejections()
		if !h.linearizable() {
			for _, o := range h.done {
				t.Logf("%8d–%8d client %d: %+v → %+v", o.Call/1000, o.Return/1000, o.ClientId, o.Input, o.Output)
			}
			t.Fatalf("history %d, limits %+v, is not linearizable", i, h.limits)
		}
	}
	t.Logf("%d histories, %d operations, %d rejections among them", histories, operations, rejections)
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
		if !record(t, fmt.Sprint("circuit ", i), storages(i), seed+i).linearizable() {
			t.Logf("caught in history %d", i)
			return
		}
	}
	t.Fatalf("%d histories, and the checker has found nothing", histories)
}

// The checker can fail: it catches a script that grants a trial too many.
func TestAScriptThatGrantsATrialTooManyIsCaught(t *testing.T) {
	storages := onRedis(t, func(c *redis.Client) infuse.RedisClient { return generous{c} })
	requireCaught(t, func(uint64) []infuse.Storage { return storages })
}

// generous changes the script on its way to Redis.
type generous struct{ *redis.Client }

func (g generous) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(noScript{})
	return cmd
}

// noScript is Redis's error that makes go-redis send the script itself.
type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT it goes by Eval" }
func (noScript) RedisError()   {}

func (g generous) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	const strict, lax = "#r.trials >= limits.maxTrials", "#r.trials > limits.maxTrials"
	if strings.Count(script, strict) != 1 {
		panic("the script does not say " + strict)
	}
	return g.Client.Eval(ctx, strings.Replace(script, strict, lax, 1), keys, args...)
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
	return s.record, nil
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
