package infuse

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The rules of a process are scripts in testdata/replica, one rule a file. A script has
// one storage and any number of processes. The indented lines after a command are its
// results: of a process, the changed lines of its records, its pending reports and its
// view. To write them anew:
//
//	go test -run TestReplica -update .
//
// Commands end with their time, as those of testdata/state.
//
//	config FailMax=5 ResetTimeout=1s    of the processes that start later; StorageDown is a number
//	start PROCESS [alone]               it has not read the record. alone: without a storage
//	read PROCESS                        it reads the record
//	call PROCESS success|failure|ignored [open=2m]
//	begin PROCESS CALL                  a call begins
//	end PROCESS CALL success|failure|ignored [open=2m]
//	resume PROCESS CALL                 the call that waited for a trial resumes
//	store PROCESS                       the storage applies the change of the process
//	answer PROCESS                      the answer arrives
//	send PROCESS                        both, until the process has nothing to send
//	timeout PROCESS                     no answer arrived in time
//	notify PROCESS                      a notification with the record arrives
//	unavailable PROCESS                 the process finds that the storage is unavailable
//	available PROCESS                   the storage is available again
//	set PROCESS closed|open|half-open   a manual change
//	stop PROCESS
//	wake PROCESS                        its timer fires
//	storage COMMAND                     a command of testdata/state, of another process
func TestReplica(t *testing.T) {
	runScripts(t, "testdata/replica/*.txt", func() func(*testing.T, string) []string {
		s := &replicaScript{script: newScript(), processes: make(map[string]*scriptProcess)}
		return s.run
	})
}

// replicaScript is a storage and its processes.
type replicaScript struct {
	*script
	config    Config
	processes map[string]*scriptProcess
}

// scriptProcess is a process of a script.
type scriptProcess struct {
	*shell
	sent   *request // no answer yet
	answer *Record  // in flight
	calls  []string // the names of shell.calls
	shown  []string
}

func (s *replicaScript) run(t *testing.T, line string) (results []string) {
	if command, is := strings.CutPrefix(line, "storage "); is {
		return s.script.run(t, command)
	}
	command, at, timed := strings.Cut(line, " at ")
	if timed {
		s.now = noon.Add(durationOf(t, at))
	}
	words := append(strings.Fields(command), "", "", "")
	if words[0] == "config" {
		for _, word := range strings.Fields(command)[1:] {
			key, value, _ := strings.Cut(word, "=")
			setField(t, &s.config, key, value)
		}
		return nil
	}
	name, what := words[1], words[2]
	p := s.processes[name]
	if words[0] == "start" {
		config := s.config
		config.Instance = name
		settings, err := newSettings(config)
		require.NoError(t, err)
		p = &scriptProcess{shell: newShell(settings, name, what != "alone", randomBefore(0.5), s.now)}
		s.processes[name] = p
		return p.changes()
	}
	require.NotNil(t, p, line)
	result := func(text string) { results = append(results, text) }
	switch words[0] {
	case "read":
		received := p.replica.received
		p.step(s.now, func(r *replica) { r.hasRead(s.record.At(s.now), received, s.now) })
	case "call", "begin":
		runs := p.begin(s.now, cmpName(words[0] == "begin", what))
		if result(runs); words[0] == "call" && runs == "runs" {
			p.end(len(p.calls)-1, outcomeOf(t, what), option(t, words[3], "open"), s.now)
		}
	case "end":
		p.end(p.named(t, what), outcomeOf(t, words[3]), option(t, words[4], "open"), s.now)
	case "resume":
		i := p.named(t, what)
		p.calls = slices.Delete(p.calls, i, i+1)
		runs, q := p.resume(i, s.now)
		if p.take(q); runs {
			p.calls = append(p.calls, what)
			result("runs")
		} else {
			result("rejected")
		}
	case "store":
		result(s.store(t, p))
	case "answer":
		p.receive(s.now)
	case "send":
		for p.sent != nil {
			result(s.store(t, p))
			p.receive(s.now)
		}
	case "timeout":
		q := p.sent
		p.sent = nil
		p.take(p.step(s.now, func(r *replica) { r.unanswered(q.Number, errShellStorage, s.now) }))
	case "notify":
		p.take(p.step(s.now, func(r *replica) { r.notified(s.record.At(s.now), s.now) }))
	case "unavailable":
		p.take(p.step(s.now, func(r *replica) { r.unavailable(errShellStorage, s.now) }))
	case "available":
		p.take(p.step(s.now, func(r *replica) { r.availableAgain() }))
	case "set":
		p.take(p.step(s.now, func(r *replica) { r.manual(Change{By: name, Manual: &ManualState{stateOf(t, what)}}, s.now) }))
	case "stop":
		p.take(p.step(s.now, func(r *replica) { r.stopped = true }))
	case "wake":
		p.take(p.wake(s.now))
	default:
		require.FailNow(t, "unknown command", line)
	}
	return append(results, p.changes()...)
}

// cmpName returns the name of a call that has one.
func cmpName(named bool, name string) string {
	if named {
		return name
	}
	return ""
}

// take keeps the request that the process sends.
func (p *scriptProcess) take(q *request) {
	if q != nil {
		p.sent = q
	}
}

// begin begins a call, and returns whether it runs.
func (p *scriptProcess) begin(now time.Time, name string) string {
	before := len(p.shell.calls)
	runs, q := p.call(now)
	p.take(q)
	switch {
	case !runs:
		return "rejected"
	case p.shell.calls[before].waits:
		p.calls = append(p.calls, name)
		return "waits"
	}
	p.calls = append(p.calls, name)
	return "runs"
}

func (p *scriptProcess) end(i int, o Outcome, openFor time.Duration, now time.Time) {
	p.calls = slices.Delete(p.calls, i, i+1)
	p.take(p.endFor(i, o, openFor, now))
}

func (p *scriptProcess) named(t *testing.T, name string) int {
	i := slices.Index(p.calls, name)
	require.GreaterOrEqual(t, i, 0, "no call %s", name)
	return i
}

// store applies the change of a process.
func (s *replicaScript) store(t *testing.T, p *scriptProcess) string {
	require.NotNil(t, p.sent, "nothing was sent")
	verdict := "read"
	if p.sent.Number > 0 {
		var v Verdict
		s.record, v = s.record.Apply(*p.sent.Change, s.now)
		verdict = []string{"refused", "applied", "changed"}[v]
	}
	answer := s.record.At(s.now).withoutNumbers()
	p.answer = &answer
	return "storage: " + verdict + ": " + s.text()
}

// receive delivers the answer.
func (p *scriptProcess) receive(now time.Time) {
	q := p.sent
	p.sent = nil
	p.take(p.step(now, func(r *replica) { r.answered(q, *p.answer, now) }))
}

// changes returns the lines about a process that differ from the last ones.
func (p *scriptProcess) changes() (changed []string) {
	now := p.lines()
	for i, line := range now {
		if i >= len(p.shown) || p.shown[i] != line {
			changed = append(changed, line)
		}
	}
	p.shown = now
	return changed
}

// lines returns the records, pending reports and view of a process.
func (p *scriptProcess) lines() []string {
	r := &p.replica
	adopted := "none"
	if r.adopted != nil {
		adopted = textOfRecord(r.adopted)
	}
	process := []string{}
	add := func(is bool, format string, args ...any) {
		if is {
			process = append(process, fmt.Sprintf(format, args...))
		}
	}
	add(!r.linked, "has no storage")
	add(r.linked && r.storageErr == nil, "attached")
	add(r.storageErr != nil, "detached")
	add(r.failing, "its last call failed")
	add(r.supplied > 0, "supplied %d failures", r.supplied)
	add(r.inherited, "started with failures on record")
	for _, l := range r.leases {
		add(true, "trial %s %s", l.id, []string{"requested", "granted", "ended"}[l.phase])
	}
	next := r.out.next.change()
	outbox := []string{textOfChange(&next)}
	if r.out.sent != nil {
		outbox = append(outbox, fmt.Sprintf("sent %d: %s", r.out.sent.Number, textOfChange(r.out.sent)))
	} else if r.out.inFlight {
		outbox = append(outbox, "a read is in flight")
	}
	calls := []string{"run", "are rejected", "may become trials"}[p.view.admits]
	if p.view.quiet {
		calls += ", and successes are not reported"
	}
	return []string{
		"local: " + textOfRecord(&r.local), "shared: " + textOfRecord(r.shared), "adopted: " + adopted,
		"process: " + strings.Join(process, ", "), "pending: " + strings.Join(outbox, "; "), "calls: " + calls,
	}
}

// textOfChange returns the reports of a change.
func textOfChange(c *Change) string {
	parts := []string{}
	add := func(is bool, format string, args ...any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(c.Calls.Failures > 0, "failures %d", c.Calls.Failures)
	add(c.Calls.Successes > 0, "successes %d", c.Calls.Successes)
	calls := sum(c.Counted)
	add(calls.Calls > 0, "%d calls of which %d failed", calls.Calls, calls.Failures)
	add(c.OpenFor > 0, "open for %v", c.OpenFor)
	add(c.RequestTrial != "", "requests trial %s", c.RequestTrial)
	for _, ended := range c.Settled {
		add(true, "trial %s %v", ended.ID, ended.Outcome)
	}
	if c.Manual != nil {
		add(true, "sets %v", c.Manual.To)
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// setField sets a plain field by its name.
func setField(t *testing.T, config *Config, name, value string) {
	field := reflect.ValueOf(config).Elem().FieldByName(name)
	require.True(t, field.IsValid(), "unknown field %s", name)
	switch {
	case field.Type() == reflect.TypeFor[time.Duration]():
		field.SetInt(int64(durationOf(t, value)))
	case field.CanInt():
		field.SetInt(int64(numberOf(t, value)))
	case field.CanUint():
		field.SetUint(uint64(numberOf(t, value)))
	case field.CanFloat():
		f, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		field.SetFloat(f)
	default:
		require.FailNow(t, "not a plain field", name)
	}
}

// A process that receives the notice of a suspicion need not read the record: it reports
// its next success, until the suspicion is dismissed.
// R15.
func TestANoticeOfASuspicionHasTheNextSuccessReported(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	attached := func(cfg Config) *replica {
		cfg.Storage = NewMemoryStorage()
		s, err := newSettings(cfg)
		require.NoError(t, err)
		r := newReplica(s, "a", true, 1)
		r.hasRead(Record{}, 0, start)
		return &r
	}
	changed, suspect := notice{noticeChanged, 7, 0}, notice{noticeSuspect, 7, 0}
	dismissed := notice{noticeDismissed, 8, 7}
	r := attached(Config{})
	assert.False(t, r.awaitsSuccess())
	assert.True(t, r.noticed(changed), "other changes are read")
	assert.False(t, r.noticed(suspect))
	assert.True(t, r.awaitsSuccess())
	assert.False(t, r.noticed(dismissed))
	assert.False(t, r.awaitsSuccess())
	assert.Same(t, &closed, r.shared, "a dismissal leaves nothing behind")

	assert.False(t, r.noticed(suspect))
	assert.True(t, r.noticed(notice{noticeDismissed, 9, 6}), "another suspicion, perhaps of another database")
	assert.True(t, r.awaitsSuccess())

	q := attached(Config{})
	assert.False(t, q.noticed(suspect))
	a := admission{}
	q.ended(&a, result{}, start)
	sent := q.outgoing(start)
	require.NotNil(t, sent)
	assert.Equal(t, Calls{Successes: 1}, sent.Calls)
	assert.Zero(t, q.ended(&a, result{}, start), "one report is enough")
	assert.True(t, q.noticed(dismissed), "the answer in flight may contain the suspicion")
	q.answered(sent, Record{}, start)
	assert.Nil(t, q.outgoing(start))
	assert.False(t, q.awaitsSuccess(), "there is no suspicion")

	r.failing = true
	assert.True(t, r.noticed(suspect), "the shared circuit may reject the calls of a failing process")
	r.failing, r.inherited = false, true
	assert.True(t, r.noticed(suspect), "a dismissal matters to a process that takes failures on record for its own")
	r.inherited = false

	r.receive(Record{Generation: 9, Failures: 5, Threshold: 5, Score: 5, SuspectAt: start}, start)
	assert.False(t, r.noticed(notice{noticeSuspect, 9, 0}), "this suspicion was received before")
	assert.True(t, r.noticed(notice{noticeSuspect, 8, 0}), "an older generation: the storage may have lost data")
	assert.True(t, r.noticed(notice{noticeDismissed, 10, 9}), "a process with the suspicion reads its dismissal")

	r = attached(Config{FailureRate: 0.5})
	assert.True(t, r.noticed(suspect), "without FailMax a success is not reported")

	r = attached(Config{})
	r.detach(errStorageTimeout, start)
	assert.True(t, r.noticed(suspect), "a detached process reads")
}

// A notice may be forged or late: it changes no record.
// R42.
func TestANoticeChangesNoRecord(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s, err := newSettings(Config{Storage: NewMemoryStorage()})
	require.NoError(t, err)
	for _, known := range []Record{
		{},
		{Generation: 5, Failures: 3},
		{Generation: 5, Failures: 5, Threshold: 5, Score: 5, SuspectAt: start},
		{Generation: 5, Since: 5, State: StateOpen, SuspectAt: start, DueAt: start.Add(time.Minute)},
	} {
		r := newReplica(s, "a", true, 1)
		r.hasRead(Record{}, 0, start)
		r.notified(known, start)
		r.receive(known, start)
		r.inherited = false
		before, local := *r.shared, r.local
		awaited := r.awaitsSuccess()
		for _, generation := range []int64{1, 5, 6, forever} {
			for _, n := range []notice{{noticeDismissed, generation, 4}, {noticeDismissed, generation, 5}, {noticeSuspect, generation, 0}, {noticeChanged, generation, 0}} {
				r.noticed(n)
				assert.Equal(t, before, *r.shared, "%v", n)
				assert.Equal(t, local, r.local, "%v", n)
				assert.True(t, r.awaitsSuccess() || !awaited, "%v: a success that is evidence is reported", n)
				assert.False(t, r.failing)
			}
		}
	}
}

func TestNoticesOfRecords(t *testing.T) {
	streak := Record{Generation: 1, Failures: 4}
	suspect := Record{Generation: 2, Failures: 5, Threshold: 5, Score: 5}
	dismissed := Record{Generation: 3}
	open := suspect
	open.State, open.Generation, open.Since = StateOpen, 3, 3
	manual := Record{Generation: 3, Since: 3, Manual: 3}
	rated := Record{Generation: 2, Rated: true}
	for _, c := range []struct {
		before, after Record
		want          noticeKind
	}{
		{streak, suspect, noticeSuspect},
		{suspect, dismissed, noticeDismissed},
		{suspect, open, noticeChanged},
		{suspect, manual, noticeChanged},
		{streak, rated, noticeChanged},
		{rated, dismissed, noticeChanged},
		{open, dismissed, noticeChanged},
	} {
		n := c.after.notice(&c.before)
		assert.Equal(t, c.want, n.kind, "%v after %v", c.after, c.before)
		assert.Equal(t, c.after.Generation, n.generation)
		assert.Equal(t, n, parseNotice(formatNotice(n)))
	}
	for _, message := range []string{
		"", "1700000000000", "suspect", "suspect ", "suspect -1", "suspect 0", "suspect 1e3", "suspect 99999999999999999999", "suspect  5",
		"dismissed 5", "dismissed 5 ", "dismissed 5 -4", "dismissed " + strings.Repeat("9", 1000), "dismissed 5 4 3", "changed 5", "Suspect 5",
	} {
		assert.Equal(t, noticeChanged, parseNotice(message).kind, "%q", message)
	}
}
