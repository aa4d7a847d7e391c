package main

import (
	"fmt"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What Redis spends on all that fleets ask of it, its network
// included.

// loadTimes is how many changes or calls are measured together.
const loadTimes = 200

// sources are the processes that report in turn.
const sources = 20

// A load is what a fleet asks of Redis again and again.
type load struct {
	name  string
	start func(*redistest.Server) (once func(i int) error, stop func(), err error)
}

var loads = []load{
	{infuseName + ": a failure", startChanges(fewLimits, infuse.Calls{}, fails)},
	{infuseName + ": a failure, with a FailureRate whose window is full", startChanges(rateLimits, infuse.Calls{}, failsInWindow)},
	{infuseName + ": a failure while it is suspect", startChanges(suspectLimits, suspectCalls, fails)},
	{infuseName + ": a success while it is suspect", startChanges(suspectLimits, suspectCalls, succeeds)},
	{infuseName + ": a transition, with its history", startChanges(fewLimits, infuse.Calls{}, moves)},
	{gobreakerFleet.name + ": a call that fails", startCalls(errUnhealthy)},
	{gobreakerFleet.name + ": a call that succeeds", startCalls(nil)},
}

// What the senders of changes are set to. No limit is reached but where the
// circuit is to be suspect, and then it stays so: neither those failures that are
// measured open it early, nor the successes dismiss it.
var (
	fewLimits     = infuse.Limits{FailMax: 1_000_000, ResetTimeout: openTime, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: openTime}
	rateLimits    = infuse.Limits{FailMax: 1_000_000, ResetTimeout: openTime, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: openTime, FailureRate: 0.5, Window: 10 * time.Second, MinCalls: 1_000_000}
	suspectLimits = infuse.Limits{FailMax: suspectCalls.Failures, ResetTimeout: openTime, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: openTime, Suspicion: openTime}
	suspectCalls  = infuse.Calls{Failures: 10 * loadTimes, Lead: 10 * loadTimes, Streak: 10 * loadTimes}
)

func fails(c *infuse.Change, _ int) { c.Calls = infuse.Calls{Failures: 1, Lead: 1, Streak: 1} }

func succeeds(c *infuse.Change, _ int) { c.Calls = infuse.Calls{Successes: 1} }

// failsInWindow has the sender tell of successes, too, as it does with a rate. The
// window is full.
func failsInWindow(c *infuse.Change, i int) {
	fails(c, i)
	c.Counted = []infuse.Bucket{{Start: time.Now().Truncate(time.Second).Add(-time.Duration(i%10) * time.Second), Calls: 10, Failures: 1}}
}

func moves(c *infuse.Change, i int) {
	c.Cause = ""
	if c.Manual = (&infuse.ManualState{To: infuse.StateOpen}); i%2 == 1 {
		c.Manual.To = infuse.StateClosed
	}
}

// startChanges has sources report changes in turn, after the first calls.
func startChanges(limits infuse.Limits, first infuse.Calls, say func(c *infuse.Change, i int)) func(*redistest.Server) (func(int) error, func(), error) {
	return func(server *redistest.Server) (func(int) error, func(), error) {
		storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
		stop := func() { _ = storage.Close() }
		circuit := newName()
		seen, _, err := storage.Apply(ctx, circuit, infuse.Change{Source: "first", Number: 1, Limits: limits, By: "host-1:123", Cause: "connection refused", Calls: first})
		return func(i int) error {
			c := infuse.Change{Source: fmt.Sprint("source-", i%sources), Number: uint64(i + 1), Seen: seen, Limits: limits, By: "host-1:123", Cause: "connection refused"}
			say(&c, i)
			r, verdict, err := storage.Apply(ctx, circuit, c)
			if err == nil && verdict == infuse.VerdictRefused {
				err = fmt.Errorf("a change was refused: the figures are of something else")
			}
			seen = r
			return err
		}, stop, err
	}
}

// startCalls has gobreaker's shared mode make calls that come to an end.
func startCalls(end error) func(*redistest.Server) (func(int) error, func(), error) {
	return func(server *redistest.Server) (func(int) error, func(), error) {
		m, err := gobreakerFleet.join(server.Client(), fleetSettings{circuit: newName(), failMax: 1_000_000, resetTimeout: openTime})
		return func(int) error {
			if err := m.call(func() error { return end }); err != end {
				return err
			}
			return nil
		}, m.stop, err
	}
}

// spent is what a load takes of Redis.
type spent struct{ micros, requests float64 }

// measure has Redis know everything before it counts.
func (l load) measure(server *redistest.Server) (spent, error) {
	once, stop, err := l.start(server)
	defer stop()
	if err != nil {
		return spent{}, err
	}
	for i := range sources {
		if err := once(i); err != nil {
			return spent{}, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	before, err := spentBy(server)
	if err != nil {
		return spent{}, err
	}
	for i := range loadTimes {
		if err := once(sources + i); err != nil {
			return spent{}, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	after, err := spentBy(server)
	return spent{(after.micros - before.micros) / loadTimes, (after.requests - before.requests) / loadTimes}, err
}

// spentBy is the processor time of Redis's main thread, and how often it has
// read from a connection: a request is one reading.
func spentBy(server *redistest.Server) (spent, error) {
	client := server.Client()
	defer client.Close()
	info, err := client.Info(ctx, "cpu", "stats").Result()
	if err != nil {
		return spent{}, err
	}
	figures := figuresOf(info)
	seconds := figures["used_cpu_user_main_thread"] + figures["used_cpu_sys_main_thread"]
	if seconds == 0 {
		return spent{}, fmt.Errorf("no used_cpu_user_main_thread in %q", info)
	}
	return spent{1e6 * seconds, figures["total_reads_processed"]}, nil
}

func serverLoads(size sizes) (table, error) {
	server, err := redistest.Launch()
	if err != nil {
		return table{}, err
	}
	defer server.Close()
	found := make([][]spent, len(loads))
	progress("Redis's processor time")
	for range size.fleetRounds {
		for i, l := range loads {
			x, err := l.measure(server)
			if err != nil {
				return table{}, err
			}
			found[i] = append(found[i], x)
		}
	}
	t := table{
		title: "Processor time of Redis for each report",
		text: fmt.Sprintf("Processor time of Redis's main thread (INFO cpu), its network included: %d of each, one after the other; medians of %d rounds in turns. "+
			"A success without failures on record costs nothing with Infuse.", loadTimes, size.fleetRounds),
		head: []string{"", "µs", "requests"},
	}
	for i, l := range loads {
		t.rows = append(t.rows, []string{
			l.name, number(medianOf(found[i], func(x spent) float64 { return x.micros })),
			number(medianOf(found[i], func(x spent) float64 { return x.requests })),
		})
	}
	return t, nil
}
