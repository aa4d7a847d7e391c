package fleettest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// The soak: eight processes call three services that begin to fail and recover at
// random, while Redis is killed, stopped, flushed and restarted at random.
// INFUSE_SOAK=60s sets how long; INFUSE_SOAK_SEED repeats a run's choices.

const (
	soakProcesses = 8
	soakCircuits  = 3
	soakTrial     = 5 * time.Second         // the lease: longer than any call
	soakBound     = storageTimeout + 900*ms // for ten processes on two cores
	soakClosed    = 8 * time.Second         // from the last fault until all circuits are closed
	ms            = time.Millisecond
)

// asSoaker holds a soakConfig in the environment of a child process.
const asSoaker = "INFUSE_TEST_SOAKER"

type soakConfig struct {
	Redis, Service string
	MaxTrials      int
}

// soakLine is what a child tells its parent, one a line.
type soakLine struct {
	Trial *soakTrialRun `json:",omitempty"`
	Moved *soakMove     `json:",omitempty"`
	Sum   *soakSum      `json:",omitempty"`
}

// soakTrialRun is a trial of the fleet, while its call ran.
type soakTrialRun struct {
	Circuit     int
	Process     int
	Began, Over time.Time
}

type soakMove struct {
	Circuit int
	To      infuse.State
	At      time.Time
}

type soakSum struct {
	Calls, Ran int
	Worst      time.Duration
	Stall      time.Duration // the longest that the machine kept a goroutine waiting
	Wrong      []string
	Left       []string // goroutines after Stop and Close
}

// soaker is a child's side.
type soaker struct {
	cfg  soakConfig
	http *http.Client

	mu  sync.Mutex // guards the rest
	out *json.Encoder
	sum soakSum
}

// serveAsSoaker calls until a line comes in, then stops and says what is left of
// it, and ends when the input does.
func serveAsSoaker(spec string) error {
	var cfg soakConfig
	if err := json.Unmarshal([]byte(spec), &cfg); err != nil {
		return err
	}
	quietRedis()
	in := bufio.NewReader(os.Stdin)
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	s := &soaker{cfg: cfg, http: &http.Client{Transport: transport, Timeout: time.Second}, out: json.NewEncoder(os.Stdout)}
	before := goroutines()
	client := redis.NewClient(&redis.Options{Addr: cfg.Redis})
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stalled := standstill(ctx)
	var calling sync.WaitGroup
	var breakers []*infuse.Breaker
	for circuit := range soakCircuits {
		b, err := infuse.New(soakName(circuit), infuse.Config{
			FailMax: 5, ResetTimeout: 300 * ms, TrialTimeout: soakTrial, MaxTrials: cfg.MaxTrials, Storage: storage,
			Listeners: []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
				s.say(soakLine{Moved: &soakMove{circuit, t.To, time.Now()}})
			}}},
		})
		if err != nil {
			return err
		}
		breakers = append(breakers, b)
		for range 2 {
			calling.Go(func() {
				for ctx.Err() == nil {
					s.call(b, circuit)
					time.Sleep(20*ms + rand.N(40*ms))
				}
			})
		}
	}
	_, _ = in.ReadString('\n')
	stop()
	calling.Wait()
	for _, b := range breakers {
		b.Stop()
	}
	_ = storage.Close()
	_ = client.Close()
	transport.CloseIdleConnections()
	s.sum.Stall, s.sum.Left = stalled(), leftSince(before)
	s.say(soakLine{Sum: &s.sum})
	_, _ = io.ReadAll(in)
	return nil
}

func soakName(circuit int) string { return "service " + strconv.Itoa(circuit) }

func (s *soaker) say(line soakLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.out.Encode(line)
}

// call makes one call in two steps, and notes what it waited beyond what the
// service took.
func (s *soaker) call(b *infuse.Breaker, circuit int) {
	ctx := context.Background()
	began := time.Now()
	before := b.Stats()
	p, err := b.Acquire(ctx)
	admitted := time.Now()
	if err != nil {
		var rejection *infuse.OpenError
		s.count(false, admitted.Sub(began), errors.As(err, &rejection), err)
		return
	}
	trial := ofTheFleet(before) && ofTheFleet(b.Stats())
	answer := s.get(circuit)
	over := time.Now()
	p.Done(answer)
	s.count(true, admitted.Sub(began)+time.Since(over), true, nil)
	if trial {
		s.say(soakLine{Trial: &soakTrialRun{circuit, os.Getpid(), admitted, over}})
	}
}

// ofTheFleet reports whether the fleet's circuit is the one that lets nobody
// in, as this process knows it. A call that was admitted all the same, and is
// not the end of that, is a trial of the fleet.
func ofTheFleet(s infuse.Stats) bool {
	return s.State != infuse.StateClosed && s.Shared.State != infuse.StateClosed && s.StorageErr == nil
}

func (s *soaker) get(circuit int) error {
	response, err := s.http.Get(s.cfg.Service + "/" + strconv.Itoa(circuit))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		return errUnhealthy
	}
	return nil
}

func (s *soaker) count(ran bool, waited time.Duration, right bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Calls++
	if ran {
		s.sum.Ran++
	}
	s.sum.Worst = max(s.sum.Worst, waited)
	if !right && len(s.sum.Wrong) < 10 {
		s.sum.Wrong = append(s.sum.Wrong, fmt.Sprint(err))
	}
}

func TestSoak(t *testing.T) {
	if os.Getenv("INFUSE_SOAK") == "" {
		takesLong(t)
	}
	seed := soakSeed(t)
	roll := rand.New(rand.NewPCG(seed, 0))
	var failing [soakCircuits]atomic.Bool
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		circuit, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		time.Sleep(2 * ms)
		if failing[circuit].Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(service.Close)
	server := redistest.Start(t)
	children := startSoakers(t, soakConfig{server.Addr(), service.URL, 1})

	var falling sync.WaitGroup
	ctx, heal := context.WithCancel(t.Context())
	for circuit := range failing {
		whims := rand.New(rand.NewPCG(seed, 1+uint64(circuit)))
		falling.Go(func() {
			defer failing[circuit].Store(false)
			for ctx.Err() == nil {
				failing[circuit].Store(!failing[circuit].Load())
				select {
				case <-time.After(time.Duration(200+whims.IntN(1500)) * ms):
				case <-ctx.Done():
				}
			}
		})
	}
	time.Sleep(500 * ms)
	faults := abuse(t, server, roll, soakTime(t))
	heal()
	falling.Wait()
	last := time.Now()
	time.Sleep(soakClosed + time.Second)

	for _, c := range children {
		c.tell()
	}
	var sum soakSum
	for i, c := range children {
		<-c.summed
		require.NotNil(t, c.sum, "process %d has said how it was", i)
		sum.Calls, sum.Ran, sum.Worst = sum.Calls+c.sum.Calls, sum.Ran+c.sum.Ran, max(sum.Worst, c.sum.Worst)
		sum.Stall = max(sum.Stall, c.sum.Stall)
		sum.Wrong, sum.Left = append(sum.Wrong, c.sum.Wrong...), append(sum.Left, c.sum.Left...)
	}
	trials, together := overlaps(children, faults)
	closed := lastMove(t, children).Sub(last)
	t.Logf("%d faults, %d calls of which %d ran, worst extra wait %v, the machine stood still for %v, ended wrongly %d; %d granted trials, two at once %d; all closed %v after the last fault",
		len(faults), sum.Calls, sum.Ran, sum.Worst.Round(ms), sum.Stall.Round(ms), len(sum.Wrong), trials, len(together), max(0, closed).Round(ms))
	require.Empty(t, sum.Wrong)
	require.Empty(t, together)
	require.Less(t, sum.Worst, soakBound+2*sum.Stall)
	require.Less(t, closed, soakClosed)
	require.Empty(t, strings.Join(sum.Left, "\n\n"), "goroutines are left")
	requireNoConnection(t, server)
}

func soakSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("INFUSE_SOAK_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: INFUSE_SOAK_SEED=%d", seed)
	return seed
}

func soakTime(t *testing.T) time.Duration {
	if given := os.Getenv("INFUSE_SOAK"); given != "" {
		d, err := time.ParseDuration(given)
		require.NoError(t, err)
		return d
	}
	return 20 * time.Second
}

// soakFault is when Redis was not to be relied on.
type soakFault struct {
	what        string
	began, over time.Time
}

// abuse does to the server what comes to mind, for so long.
func abuse(t *testing.T, s *redistest.Server, roll *rand.Rand, d time.Duration) (faults []soakFault) {
	t.Helper()
	upTo := func(most time.Duration) time.Duration { return time.Duration(roll.Int64N(int64(most))) }
	deeds := []struct {
		name string
		do   func()
	}{
		{"killed", func() {
			s.Kill()
			time.Sleep(upTo(1500 * ms))
			require.NoError(t, s.Restart())
		}},
		{"stopped", func() {
			s.Pause()
			time.Sleep(upTo(3 * time.Second))
			s.Resume()
		}},
		{"flushed", func() { require.NoError(t, adminOf(s).FlushAll(t.Context()).Err()) }},
		{"restarted", func() { require.NoError(t, s.Restart()) }},
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		deed := deeds[roll.IntN(len(deeds))]
		f := soakFault{what: deed.name, began: time.Now()}
		deed.do()
		f.over = time.Now()
		faults = append(faults, f)
		time.Sleep(upTo(5 * time.Second))
	}
	return faults
}

// soakChild is the parent's side of a child process.
type soakChild struct {
	in     io.WriteCloser
	summed chan struct{} // closed when it has nothing more to say
	trials []soakTrialRun
	moves  [soakCircuits]soakMove // the last of each circuit
	sum    *soakSum
}

func startSoakers(t *testing.T, cfg soakConfig) (children []*soakChild) {
	t.Helper()
	spec, err := json.Marshal(cfg)
	require.NoError(t, err)
	for range soakProcesses {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asSoaker+"="+string(spec))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		c := &soakChild{in: in, summed: make(chan struct{})}
		go c.listen(out)
		children = append(children, c)
	}
	return children
}

func (c *soakChild) listen(out io.Reader) {
	defer close(c.summed)
	for lines := json.NewDecoder(out); c.sum == nil; {
		var line soakLine
		if lines.Decode(&line) != nil {
			return
		}
		switch {
		case line.Trial != nil:
			c.trials = append(c.trials, *line.Trial)
		case line.Moved != nil:
			c.moves[line.Moved.Circuit] = *line.Moved
		}
		c.sum = line.Sum
	}
}

// tell has the child stop calling. Its input stays open, and so its process.
func (c *soakChild) tell() { _, _ = io.WriteString(c.in, "stop\n") }

// overlaps counts the trials that ran while Redis was up throughout, and
// returns those of which two ran at once.
func overlaps(children []*soakChild, faults []soakFault) (counted int, together [][2]soakTrialRun) {
	var last [soakCircuits]soakTrialRun
	var all []soakTrialRun
	for _, c := range children {
		all = append(all, c.trials...)
	}
	slices.SortFunc(all, func(a, b soakTrialRun) int { return a.Began.Compare(b.Began) })
	for _, trial := range all {
		if slices.ContainsFunc(faults, trial.meets) {
			continue
		}
		counted++
		before := last[trial.Circuit]
		if before.Over.After(trial.Began) {
			together = append(together, [2]soakTrialRun{before, trial})
		}
		if trial.Over.After(before.Over) {
			last[trial.Circuit] = trial
		}
	}
	return counted, together
}

// meets reports whether the trial ran, or asked for its place, during the
// fault. What Redis lost in a fault is restored within a second or two: until
// then it knows nothing of the trials that were granted before.
func (r soakTrialRun) meets(f soakFault) bool {
	return r.Over.After(f.began) && r.Began.Before(f.over.Add(2*time.Second))
}

// lastMove returns when the last circuit of a process was closed.
func lastMove(t *testing.T, children []*soakChild) (last time.Time) {
	t.Helper()
	for i, c := range children {
		for circuit, move := range c.moves {
			require.Equal(t, infuse.StateClosed, move.To, "process %d, circuit %d", i, circuit)
			if move.At.After(last) {
				last = move.At
			}
		}
	}
	return last
}

// adminOf returns a client of the test's own, known by its name.
func adminOf(s *redistest.Server) *redis.Client {
	return s.Client(func(o *redis.Options) { o.ClientName, o.PoolSize = "admin", 1 })
}

// requireNoConnection fails the test unless the children, which have closed
// their storages and clients but still run, have no connection to the server.
func requireNoConnection(t *testing.T, s *redistest.Server) {
	t.Helper()
	admin := adminOf(s)
	var others []string
	assert.Eventually(t, func() bool {
		list, err := admin.ClientList(t.Context()).Result()
		if err != nil {
			others = []string{err.Error()}
			return false
		}
		others = nil
		for _, client := range strings.Split(strings.TrimSpace(list), "\n") {
			if !strings.Contains(client, "name=admin") {
				others = append(others, client)
			}
		}
		return len(others) == 0
	}, patience, pace)
	require.Empty(t, others, "connections are left")
}

// A detector that sees nothing passes every soak.
func TestTheSoakSeesTwoTrialsAtOnce(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	one := &soakChild{trials: []soakTrialRun{{0, 1, at(10), at(20)}, {1, 1, at(10), at(20)}, {0, 1, at(50), at(60)}}}
	other := &soakChild{trials: []soakTrialRun{{0, 2, at(19), at(30)}, {1, 2, at(20), at(30)}, {0, 2, at(55), at(70)}}}
	counted, together := overlaps([]*soakChild{one, other}, []soakFault{{"killed", at(51), at(52)}})
	require.Equal(t, 5, counted)
	require.Equal(t, [][2]soakTrialRun{{one.trials[0], other.trials[0]}}, together)
}
