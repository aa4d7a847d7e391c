package pybreakerstorage

// This file replays recordings of pybreaker.

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// trace is a recording of pybreaker 1.4.1: two processes that share a namespace.
type trace struct {
	FailMax          int `json:"fail_max"`
	SuccessThreshold int `json:"success_threshold"`
	Ops              []op
}

// op is one operation of a process, or a wait.
type op struct {
	Process int
	Op      string
	Result  string
	Sent    [][]string        // all commands but those that write opened_at
	Keys    map[string]string // after the operation
	Seconds float64           // of a wait
}

const traced = "orders" // the namespace in all traces

func readTraces(t *testing.T) (all []trace) {
	t.Helper()
	file, err := os.Open("testdata/pybreaker-redis.jsonl")
	require.NoError(t, err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var one trace
		require.NoError(t, json.Unmarshal(lines.Bytes(), &one))
		all = append(all, one)
	}
	require.NoError(t, lines.Err())
	require.Len(t, all, 88)
	return all
}

// replay is the replay of a trace.
type replay struct {
	*testing.T
	client    *redis.Client
	namespace string
	storages  [2]*Storage
	step      string
}

func newReplay(t *testing.T, client *redis.Client, number int, resetTimeout time.Duration) *replay {
	r := &replay{T: t, client: client, namespace: fmt.Sprintf("%s-%d", traced, number)}
	for i := range r.storages {
		var err error
		r.storages[i], err = New(client, Options{ResetTimeout: resetTimeout})
		require.NoError(t, err)
	}
	return r
}

func (r *replay) wait(d time.Duration) {
	for _, s := range r.storages {
		s.ahead += d
	}
}

// second returns the current second, after all waits.
func (r *replay) second() int64 {
	return r.client.Time(r.Context()).Val().Add(r.storages[0].ahead).Unix()
}

func (r *replay) key(name string) string { return r.namespace + ":pybreaker:" + name }

func (r *replay) value(name string) string {
	return r.client.Get(r.Context(), r.key(name)).Val()
}

func (r *replay) number(name string) int64 {
	n, _ := strconv.ParseInt(r.value(name), 10, 64)
	return n
}

func (r *replay) set(name string, value any) {
	r.Helper()
	require.NoError(r, r.client.Set(r.Context(), r.key(name), value, 0).Err())
}

func (r *replay) load(process int) infuse.Record {
	r.Helper()
	record, err := r.storages[process].Load(r.Context(), r.namespace)
	require.NoError(r, err, r.step)
	return record
}

func (r *replay) keysOf(o op) map[string]string {
	keys := make(map[string]string)
	for key, value := range o.Keys {
		keys[strings.TrimPrefix(key, traced+":pybreaker:")] = value
	}
	return keys
}

// send sends the recorded commands. Before the state open, it sends a new opened_at.
func (r *replay) send(o op) {
	for i, command := range o.Sent {
		if command[0] == "GET" {
			continue
		}
		if next := i + 1; next < len(o.Sent) && o.Sent[next][len(o.Sent[next])-1] == "open" {
			r.set("opened_at", max(r.number("opened_at"), r.second()))
			r.load(1 - o.Process)
		}
		args := []any{command[0], strings.Replace(command[1], traced, r.namespace, 1), command[2]}
		require.NoError(r, r.client.Do(r.Context(), args...).Err())
		r.load(1 - o.Process)
	}
}

// Go reads correct records after each command of pybreaker.
func TestGoReadsPythonWrites(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	for i, trace := range readTraces(t) {
		r := newReplay(t, client, i, time.Second)
		for key, value := range map[string]string{"state": "closed", "fail_counter": "0", "success_counter": "0"} {
			r.set(key, value)
		}
		before := r.load(0)
		for j, o := range trace.Ops {
			if o.Op == "wait" {
				r.wait(time.Duration(o.Seconds * float64(time.Second)))
				continue
			}
			r.step = fmt.Sprintf("trace %d, step %d: %s: %s", i, j, o.Op, o.Result)
			r.send(o)
			after := r.load(o.Process)
			r.saw(before, after, r.keysOf(o))
			require.Equal(t, after.Generation, r.load(1-o.Process).Generation, r.step)
			before = after
		}
	}
}

// saw checks the record that Go has read, and that Python's keys are unchanged.
func (r *replay) saw(before, after infuse.Record, keys map[string]string) {
	r.Helper()
	number := func(name string) int {
		n, err := strconv.Atoi(keys[name])
		require.NoError(r, err)
		return n
	}
	require.Equal(r, keys["state"], after.State.String(), r.step)
	require.GreaterOrEqual(r, after.Generation, before.Generation, r.step)
	if after.State != before.State {
		require.Greater(r, after.Generation, before.Generation, r.step)
	}
	switch after.State {
	case infuse.StateClosed:
		require.Equal(r, number("fail_counter"), after.Failures, r.step)
	case infuse.StateHalfOpen:
		require.Equal(r, number("success_counter"), after.Successes, r.step)
	case infuse.StateOpen:
		require.Equal(r, number("fail_counter"), after.Failures, r.step)
		require.WithinDuration(r, time.Unix(r.number("opened_at")+1, 0), after.DueAt, 1100*time.Millisecond, r.step)
	}
	for name, value := range keys {
		if name != "opened_at" {
			require.Equal(r, value, r.value(name), r.step)
		}
	}
}

// Go writes the same values as pybreaker for the calls and states of the traces.
func TestGoWritesLikePython(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	setBacks := 0
	for i, trace := range readTraces(t) {
		r := newReplay(t, client, i, time.Minute)
		limits := infuse.Limits{
			FailMax: trace.FailMax, SuccessThreshold: trace.SuccessThreshold,
			ResetTimeout: time.Minute, MaxTrials: 1, TrialTimeout: time.Hour,
		}
		for j, o := range trace.Ops {
			if o.Op == "wait" {
				r.wait(2 * time.Minute) // Python waited 2 s for a reset_timeout of 1 s
				continue
			}
			r.step = fmt.Sprintf("trace %d, step %d: %s: %s", i, j, o.Op, o.Result)
			if r.setsBack(o) {
				setBacks++
				r.send(o)
				continue
			}
			opened := r.number("opened_at")
			rejected := r.do(o, limits)
			require.Equal(t, strings.HasPrefix(o.Result, "rejected: Timeout"), rejected, r.step)
			r.wrote(o, opened)
		}
	}
	require.Equal(t, 7, setBacks, "of 1205 steps")
}

// do makes a Go process do the operation. It reports whether the call was rejected.
func (r *replay) do(o op, limits infuse.Limits) (rejected bool) {
	r.Helper()
	apply := func(c infuse.Change) infuse.Record {
		c.Seen, c.Limits = r.load(o.Process), limits
		record, _, err := r.storages[o.Process].Apply(r.Context(), r.namespace, c)
		require.NoError(r, err, r.step)
		return record
	}
	move := map[string]infuse.State{"open": infuse.StateOpen, "half_open": infuse.StateHalfOpen, "close": infuse.StateClosed}
	if to, ok := move[o.Op]; ok {
		apply(infuse.Change{Manual: &infuse.ManualState{To: to}})
		return false
	}
	outcome, calls := infuse.OutcomeSuccess, infuse.Calls{Successes: 1}
	if o.Op == "failure" {
		outcome, calls = infuse.OutcomeFailure, infuse.Calls{Failures: 1, Lead: 1, Streak: 1}
	}
	if r.load(o.Process).State == infuse.StateClosed {
		apply(infuse.Change{Calls: calls, Source: "source", Number: uint64(time.Now().UnixNano())})
		return false
	}
	if len(apply(infuse.Change{RequestTrial: "trial"}).Trials) == 0 {
		return true
	}
	apply(infuse.Change{Settled: []infuse.Settlement{{ID: "trial", Outcome: outcome}}})
	return false
}

// wrote checks that the keys have the values that Python wrote.
func (r *replay) wrote(o op, openedBefore int64) {
	r.Helper()
	keys := r.keysOf(o)
	initial := map[string]string{"state": "closed"} // which Go need not save
	for name, value := range keys {
		if name != "opened_at" {
			require.Equal(r, value, cmp.Or(r.value(name), initial[name], "0"), "%s: %s", r.step, name)
		}
	}
	opens := len(o.Sent) > 0 && o.Sent[len(o.Sent)-1][len(o.Sent[len(o.Sent)-1])-1] == "open"
	switch opened := r.number("opened_at"); {
	case keys["opened_at"] == "":
		require.Zero(r, opened, r.step)
	case opens:
		require.InDelta(r, r.second(), opened, 1, r.step)
	default:
		require.Equal(r, openedBefore, opened, r.step)
	}
}

// setsBack reports whether a Python process restarted its count because another process
// had set the state, although calls had been counted since. Go does not do that.
func (r *replay) setsBack(o op) bool {
	sent := o.Sent
	if len(sent) < 3 || sent[0][0] != "GET" || sent[1][0] != "GET" || sent[0][1] != sent[1][1] || sent[2][0] != "SET" {
		return false
	}
	return r.number(strings.TrimPrefix(sent[2][1], traced+":pybreaker:")) > 0
}
