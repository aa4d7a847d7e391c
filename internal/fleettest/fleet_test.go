package fleettest

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Tests with real processes: each member of a fleet is this test binary run
// again, with a breaker and a Redis client of its own. It takes orders on its
// standard input, one at a time, and ends with it.

// asMember holds a memberConfig in the environment of a child process.
const asMember = "INFUSE_TEST_MEMBER"

type memberConfig struct {
	Addr, Circuit string
	Limits        infuse.Limits
}

// order is what a member must do.
type order struct {
	Do  string
	N   int           // fail: so many calls, all at once
	For time.Duration // ask: for so long, or until a call is admitted
	Err bool          // done: the call that was admitted failed
}

// answer is how that went.
type answer struct {
	Problem       string // of the member, not of the circuit
	Ran, Rejected int
	Asked         time.Time // just before the call that was admitted asked
	Admitted      time.Time // just after; zero if none was
	State         string
	Events        []string
}

func serveAsMember(spec string) error {
	var cfg memberConfig
	if err := json.Unmarshal([]byte(spec), &cfg); err != nil {
		return err
	}
	var changes stateLog
	client := redis.NewClient(&redis.Options{Addr: cfg.Addr})
	b, err := infuse.New(cfg.Circuit, infuse.Config{
		FailMax: cfg.Limits.FailMax, ResetTimeout: cfg.Limits.ResetTimeout,
		SuccessThreshold: cfg.Limits.SuccessThreshold,
		MaxTrials:        cfg.Limits.MaxTrials, TrialTimeout: cfg.Limits.TrialTimeout,
		Storage:        infuse.NewRedisStorage(client, infuse.RedisOptions{}),
		StorageTimeout: patience,
		Listeners:      []*infuse.Listener{changes.Listener()},
	})
	if err != nil {
		return err
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var held infuse.Permit
	for {
		var o order
		if in.Decode(&o) != nil {
			return nil // the parent has gone
		}
		var a answer
		switch o.Do {
		case "ready":
		case "open":
			if err := b.SetState(context.Background(), infuse.StateOpen); err != nil {
				a.Problem = err.Error()
			}
		case "fail":
			a = failAtOnce(b, o.N)
		case "ask":
			a, held = askUntilAdmitted(b, o.For)
		case "done":
			var err error
			if o.Err {
				err = errUnhealthy
			}
			held.Done(err)
		default:
			a.Problem = "does not know the order " + o.Do
		}
		a.State, a.Events = b.State().String(), changes.All()
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func failAtOnce(b *infuse.Breaker, n int) (a answer) {
	var all sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for range n {
		all.Go(func() {
			<-start
			err := b.Call(context.Background(), fails)
			mu.Lock()
			defer mu.Unlock()
			if err == errUnhealthy {
				a.Ran++
			} else {
				a.Rejected++
			}
		})
	}
	close(start)
	all.Wait()
	return a
}

func askUntilAdmitted(b *infuse.Breaker, most time.Duration) (a answer, p infuse.Permit) {
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		a.Asked = time.Now()
		p, err := b.Acquire(context.Background())
		if err == nil {
			a.Admitted, a.Ran = time.Now(), 1
			return a, p
		}
		a.Rejected++
	}
	return a, p
}

// member is the parent's side of a child process.
type member struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// startFleet starts n processes and returns when each has its breaker. They
// are gone when the test ends.
func startFleet(t testing.TB, n int, cfg memberConfig) []*member {
	t.Helper()
	spec, err := json.Marshal(cfg)
	require.NoError(t, err)
	var fleet []*member
	for range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asMember+"="+string(spec))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		m := &member{t, cmd, json.NewEncoder(in), json.NewDecoder(out)}
		t.Cleanup(m.kill)
		fleet = append(fleet, m)
	}
	together(fleet, order{Do: "ready"})
	return fleet
}

func (m *member) do(o order) answer {
	m.t.Helper()
	m.send(o)
	return m.receive()
}

func (m *member) send(o order) {
	m.t.Helper()
	require.NoError(m.t, m.in.Encode(o))
}

func (m *member) receive() answer {
	m.t.Helper()
	var a answer
	require.NoError(m.t, m.out.Decode(&a))
	require.Empty(m.t, a.Problem)
	return a
}

// kill ends the process with SIGKILL: it can settle nothing any more.
func (m *member) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func together(fleet []*member, o order) []answer {
	for _, m := range fleet {
		m.send(o)
	}
	answers := make([]answer, len(fleet))
	for i, m := range fleet {
		answers[i] = m.receive()
	}
	return answers
}

// awaitState waits until the news has reached every process.
func awaitState(fleet []*member, state string) {
	for i, m := range fleet {
		require.Eventually(m.t, func() bool {
			return m.do(order{Do: "ready"}).State == state
		}, patience, pace, "process %d is to know that the circuit is %s", i, state)
	}
}

// fleetLimits are limits that no test comes near, but for those it sets.
func fleetLimits(set func(*infuse.Limits)) infuse.Limits {
	l := infuse.Limits{FailMax: 5, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour}
	set(&l)
	return l
}

func (c memberConfig) config() infuse.Config {
	l := c.Limits
	return patiently(infuse.Config{
		FailMax: l.FailMax, ResetTimeout: l.ResetTimeout, SuccessThreshold: l.SuccessThreshold,
		MaxTrials: l.MaxTrials, TrialTimeout: l.TrialTimeout,
	})
}

// A shared breaker that read, counted and wrote back lost nearly
// all failures of processes that failed together: 387 of 823 were counted.
// R10.
func TestEightProcessesCountEveryFailure(t *testing.T) {
	server := redistest.Start(t)
	cfg := memberConfig{server.Addr(), "prices", fleetLimits(func(l *infuse.Limits) { l.FailMax = 1_000_000 })}
	for i, a := range together(startFleet(t, 8, cfg), order{Do: "fail", N: 50}) {
		require.Equal(t, 50, a.Ran, "of process %d", i)
	}
	all := cfg.config()
	all.Storage = host(t, server)
	require.Equal(t, 400, recordOf(t, startBreaker(t, "prices", all)).Failures)
}

// Ten processes reached the end of the open time together, and
// each sent a trial of its own to the service that was just getting up.
// R23, R24.
func TestTenProcessesRunOneTrial(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	cfg := memberConfig{server.Addr(), "prices", fleetLimits(func(l *infuse.Limits) { l.ResetTimeout = 500 * time.Millisecond })}
	fleet := startFleet(t, 10, cfg)
	require.Empty(t, fleet[0].do(order{Do: "open"}).Problem)

	awaitState(fleet, "open")

	var holder *member
	for i, a := range together(fleet, order{Do: "ask", For: 2 * time.Second}) {
		if a.Ran == 1 {
			require.Nil(t, holder, "there are two trials")
			holder = fleet[i]
		} else {
			require.Greater(t, a.Rejected, 0)
		}
	}
	require.NotNil(t, holder, "there is no trial")
	require.Equal(t, "closed", holder.do(order{Do: "done"}).State)
	for _, a := range together(fleet, order{Do: "ask", For: patience}) {
		require.Equal(t, 1, a.Ran, "all go on after the trial")
	}
}

// The process that held the trial was killed; everybody who asked
// prolonged its hold, so that the circuit never recovered under load.
// R26.
func TestATrialOfAKilledProcessIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	const trialTimeout = 500 * time.Millisecond
	server := redistest.Start(t)
	cfg := memberConfig{server.Addr(), "prices", fleetLimits(func(l *infuse.Limits) {
		l.ResetTimeout, l.TrialTimeout = 100*time.Millisecond, trialTimeout
	})}
	fleet := startFleet(t, 5, cfg)
	doomed, others := fleet[0], fleet[1:]
	require.Empty(t, doomed.do(order{Do: "open"}).Problem)
	awaitState(fleet, "open")
	first := doomed.do(order{Do: "ask", For: patience})
	require.Equal(t, 1, first.Ran)
	doomed.kill()

	asked := 0
	var trials []answer
	for _, a := range together(others, order{Do: "ask", For: 4 * trialTimeout}) {
		asked += a.Rejected
		if a.Ran == 1 {
			trials = append(trials, a)
		}
	}
	require.Greater(t, asked, 100, "the others asked all the time")
	require.NotEmpty(t, trials, "nobody got a trial after the lease")

	// Those who got one held it and fell silent, so that there may have been
	// several, but each only after the lease before it.
	slices.SortFunc(trials, func(a, b answer) int { return a.Admitted.Compare(b.Admitted) })
	for previous := first; len(trials) > 0; previous, trials = trials[0], trials[1:] {
		require.GreaterOrEqual(t, trials[0].Admitted.Sub(previous.Asked), trialTimeout-5*time.Millisecond, "two trials ran at a time")
	}
}

// A process that was started anew reset the circuit that its
// fleet held open, or had it open for longer.
func TestAProcessThatJoinsChangesNothing(t *testing.T) {
	server := redistest.Start(t)
	cfg := memberConfig{server.Addr(), "prices", fleetLimits(func(*infuse.Limits) {})}
	raw := func() map[string]string { return server.Client().HGetAll(t.Context(), "infuse:{prices}").Val() }
	life := func() time.Duration { return server.Client().PTTL(t.Context(), "infuse:{prices}").Val() }

	first := startFleet(t, 1, cfg)[0]
	require.Equal(t, 3, first.do(order{Do: "fail", N: 3}).Ran)
	before, left := raw(), life()
	require.Equal(t, "3", before["n"])
	joining := startFleet(t, 1, cfg)[0]
	require.Equal(t, "closed", joining.do(order{Do: "ready"}).State)
	require.Equal(t, before, raw())
	require.LessOrEqual(t, life(), left)

	require.Equal(t, 2, first.do(order{Do: "fail", N: 2}).Ran)
	require.LessOrEqual(t, joining.do(order{Do: "fail", N: 5}).Ran, 5, "no more than by a local breaker; 2 if it has read the three failures")
	awaitState([]*member{first, joining}, "open") // each by its local circuit
	before, left = raw(), life()
	last := startFleet(t, 1, cfg)[0]
	a := last.do(order{Do: "ready"})
	require.Equal(t, "closed", a.State)
	require.Equal(t, before, raw())
	require.LessOrEqual(t, life(), left)
	require.Empty(t, a.Events, "to join is no transition")
}

// A process logged the transitions that it made itself, and so
// its operators learnt of half of the outages.
func TestListenersReceiveTransitionsOfOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	cfg := memberConfig{server.Addr(), "prices", fleetLimits(func(l *infuse.Limits) { l.ResetTimeout = 300 * time.Millisecond })}
	fleet := startFleet(t, 5, cfg)

	for range 2 { // the threshold, and when Suspicion is over, as much again
		for i, a := range together(fleet, order{Do: "fail", N: 1}) { // so that nobody has reason of its own
			require.Equal(t, 1, a.Ran, "of process %d", i)
		}
		time.Sleep(100 * time.Millisecond)
	}
	awaitState(fleet, "open")
	require.Equal(t, 1, fleet[1].do(order{Do: "ask", For: patience}).Ran)
	require.Equal(t, "closed", fleet[1].do(order{Do: "done"}).State)

	for i, m := range fleet {
		var events []string
		require.Eventually(t, func() bool {
			events = m.do(order{Do: "ready"}).Events
			return len(events) > 0 && strings.HasSuffix(events[len(events)-1], ">closed")
		}, patience, 10*pace, "process %d", i)
		require.Equal(t, "closed>open", events[0], "process %d", i)
		require.LessOrEqual(t, len(events), 3, "process %d: a message is a hint, so that one state may be read after the next", i)
	}
}

// A breaker acts on a notification at once: 40 of them, with clients and
// connections of their own, know within 100 ms of the report that opens the shared
// circuit, and reject after one failure of their own.
func TestFortyBreakersRejectSoon(t *testing.T) {
	const breakers, rounds = 40, 15
	server := redistest.Start(t)
	opened := make([]chan time.Time, breakers)
	fleet := make([]*infuse.Breaker, breakers)
	for i := range fleet {
		opened[i] = make(chan time.Time, 1)
		fleet[i] = startBreaker(t, "prices", patiently(infuse.Config{
			ResetTimeout: time.Hour,
			Storage:      host(t, server),
			Listeners: []*infuse.Listener{{StateChange: func(_ *infuse.Breaker, t infuse.Transition) {
				if t.To == infuse.StateOpen && !t.Local {
					opened[i] <- time.Now()
				}
			}}},
		}))
	}
	require.Eventually(t, func() bool {
		n, err := server.Client().PubSubNumSub(t.Context(), "infuse:{prices}").Result()
		return err == nil && n["infuse:{prices}"] == breakers
	}, patience, pace)

	stalled := standstill(t.Context())
	var lasts, all []time.Duration
	for range rounds {
		trip(t, fleet[0])
		time.Sleep(60 * time.Millisecond) // longer than Config.Suspicion
		for range 4 {
			require.Equal(t, errUnhealthy, fleet[1].Call(t.Context(), fails))
		}
		fifth := time.Now()
		require.Equal(t, errUnhealthy, fleet[1].Call(t.Context(), fails))
		var last time.Duration
		for i := range fleet {
			took := (<-opened[i]).Sub(fifth)
			all, last = append(all, took), max(last, took)
		}
		lasts = append(lasts, last)
		for i, b := range fleet {
			if i > 1 {
				require.Equal(t, errUnhealthy, b.Call(t.Context(), fails), "one failure of its own")
			}
			requireRejected(t, b)
		}
		require.NoError(t, fleet[0].SetState(t.Context(), infuse.StateClosed))
		eventuallyState(t, infuse.StateClosed, fleet...)
	}
	slices.Sort(lasts)
	slices.Sort(all)
	t.Logf("from the fifth failure until %d breakers reject, in %d rounds: a breaker p50 %v, p99 %v; the last of a round p50 %v, max %v",
		breakers, rounds, all[len(all)/2], all[len(all)*99/100], lasts[rounds/2], lasts[rounds-1])
	assert.Less(t, lasts[0], 100*time.Millisecond+2*stalled(), "the best round")
}
