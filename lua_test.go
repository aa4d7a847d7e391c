package infuse_test

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

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// These tests hold circuit.lua against state.go: the same random changes go
// through both, and after every step the verdicts, the records and the tokens
// are the same. The script says at what time it judged; the Go side judges at
// that time too, so that deadlines may be hit to the millisecond.

// Ordinary runs compare 100,000 steps and more in all.
const (
	stepsOnRedis     = 110_000
	stepsOnMiniredis = 10_000
	stepsWhenShort   = 2_000
)

func TestTheScriptDoesWhatGoDoesOnARealRedis(t *testing.T) {
	const workers = 4
	server := redistest.Start(t)
	seed := luaSeed(t)
	var running sync.WaitGroup
	for worker := range uint64(workers) {
		running.Go(func() {
			// In real time nothing is to expire, however long the machine stalls.
			lua := newLuaSide(server.Client(), fmt.Sprint("worker", worker), time.Minute)
			defer lua.close()
			err := lua.compare(newDice(seed, worker), luaSteps(stepsOnRedis)/workers)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	running.Wait()
}

func TestTheScriptDoesWhatGoDoesOnMiniredis(t *testing.T) {
	seed := luaSeed(t)
	lua := newMiniLuaSide(t)
	if err := lua.compare(newDice(seed, 0), luaSteps(stepsOnMiniredis)); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

func FuzzLuaAgainstGo(f *testing.F) {
	f.Add([]byte("a few bytes are enough for a step or two"))
	for seed := range uint64(8) {
		roll := newDice(seed, 0)
		corpus := make([]byte, 100*(seed+1))
		for i := range corpus {
			corpus[i] = byte(roll(256))
		}
		f.Add(corpus)
	}
	lua := newMiniLuaSide(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		lua.mini.FlushAll()
		data = data[:min(len(data), 1<<12)] // some hundred steps
		w := newTwin(lua, bytesAsDice(&data))
		for len(data) > 0 {
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// dice returns a number from 0 to n-1; one of bytes knows none above 255.
type dice func(n int) int

func newDice(seed, stream uint64) dice { return rand.New(rand.NewPCG(seed, stream)).IntN }

// bytesAsDice uses up a byte a roll, and rolls zeros in the end.
func bytesAsDice(data *[]byte) dice {
	return func(n int) int {
		if len(*data) == 0 {
			return 0
		}
		b := (*data)[0]
		*data = (*data)[1:]
		return int(b) % n
	}
}

func (roll dice) oneIn(n int) bool { return roll(n) == 0 }

func luaSteps(n int) int {
	if testing.Short() {
		return min(n, stepsWhenShort)
	}
	return n
}

// luaSeed is new in every run; LUA_SEED repeats one.
func luaSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("LUA_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: LUA_SEED=%d", seed)
	return seed
}

// luaSide is the script on some Redis. It is not safe for concurrent use.
type luaSide struct {
	name     string // starts its circuits' names
	circuits int
	client   *redis.Client
	storage  *infuse.RedisStorage
	seen     string // as the script was last told
	reply    []any  // what it answered

	mini  *miniredis.Miniredis // nil on a real Redis
	clock time.Time            // miniredis's
}

// newLuaSide makes a storage where closed circuits linger for two polls.
func newLuaSide(client *redis.Client, name string, poll time.Duration) *luaSide {
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: poll})
	lua := &luaSide{name: name, client: client, storage: storage}
	client.AddHook(lua)
	return lua
}

func newMiniLuaSide(tb testing.TB) *luaSide {
	mini := miniredis.RunT(tb)
	lua := newLuaSide(redis.NewClient(&redis.Options{Addr: mini.Addr()}), "mini", 50*time.Millisecond)
	tb.Cleanup(lua.close)
	lua.mini, lua.clock = mini, time.UnixMilli(1_700_000_000_000)
	lua.advance(0)
	return lua
}

func (lua *luaSide) close() {
	_ = lua.storage.Close()
	_ = lua.client.Close()
}

// advance moves both of miniredis's clocks: TIME, and that by which keys expire.
func (lua *luaSide) advance(d time.Duration) {
	lua.clock = lua.clock.Add(d)
	lua.mini.SetTime(lua.clock)
	lua.mini.FastForward(d)
}

// The hooks of go-redis: they keep what is told to the script, and its reply.

func (lua *luaSide) DialHook(next redis.DialHook) redis.DialHook {
	return next
}

func (lua *luaSide) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (lua *luaSide) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if script, ok := cmd.(*redis.Cmd); ok && err == nil && len(cmd.Args()) > 6 {
			lua.seen, _ = cmd.Args()[6].(string) // evalsha, hash, 1, key; kind, token, seen
			lua.reply, _ = script.Slice()
		}
		return err
	}
}

// compare makes so many steps on ever new circuits, some at a time.
func (lua *luaSide) compare(roll dice, steps int) error {
	const atATime = 8
	var twins []*twin
	for range steps {
		if len(twins) < atATime {
			twins = append(twins, newTwin(lua, roll))
		}
		i := roll(len(twins))
		if err := twins[i].step(); err != nil {
			return err
		}
		if twins[i].left--; twins[i].left == 0 {
			twins = slices.Delete(twins, i, i+1)
		}
	}
	return nil
}

// twin is one circuit twice: in Redis, and as the Record that Go makes of the
// same changes.
type twin struct {
	lua      *luaSide
	roll     dice
	circuit  string
	left     int           // steps to go
	patient  bool          // hears of failures almost only, and takes many to open: so there are many tokens to remember
	record   infuse.Record // its times are on Redis's clock
	saved    time.Time     // when it last changed
	tokens   []string      // all, for changes that come twice
	outgrown []int64       // generations it has had
	story    []string      // the steps so far
}

func newTwin(lua *luaSide, roll dice) *twin {
	lua.circuits++
	circuit := fmt.Sprintf("%s-%d", lua.name, lua.circuits)
	w := &twin{lua: lua, roll: roll, circuit: circuit, patient: roll.oneIn(8)}
	w.left = 1 + roll(100)
	if w.patient {
		w.left += 150
	}
	return w
}

// step makes a change, or just a load, on both sides. The error tells where
// they part, and the whole way there.
func (w *twin) step() error {
	if w.lua.mini != nil {
		w.passTime()
		if err := w.mayBeForgotten(); err != nil {
			return w.failed(err)
		}
	}
	var err error
	if w.roll.oneIn(12) {
		err = w.load()
	} else {
		err = w.apply(w.change())
	}
	if err == nil && (w.lua.mini != nil || w.roll.oneIn(8)) {
		err = w.outlives()
	}
	return w.failed(err)
}

func (w *twin) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\nThe steps of this circuit:\n%s", err, strings.Join(w.story, "\n"))
}

func (w *twin) load() error {
	var got luaAnswer
	got.asked = time.Now()
	got.record, got.err = w.lua.storage.Load(context.Background(), w.circuit)
	got.answered = time.Now()
	got.verdict = infuse.VerdictApplied
	return w.agrees(got, w.record, infuse.VerdictApplied)
}

func (w *twin) apply(c infuse.Change) error {
	var got luaAnswer
	got.asked = time.Now()
	got.record, got.verdict, got.err = w.lua.storage.Apply(context.Background(), w.circuit, c)
	got.answered = time.Now()
	if got.err != nil {
		return fmt.Errorf("%+v: %w", c, got.err)
	}
	now := w.lua.judgedAt()
	// The times that were seen are on their way as durations.
	seen, err := infuse.DecodeRecord(w.lua.seen, now)
	if err != nil {
		return fmt.Errorf("%+v is sent as %q: %w", c.Seen, w.lua.seen, err)
	}
	c.Seen = seen
	want, verdict := w.record.Apply(c, now)
	w.story = append(w.story, fmt.Sprintf("%+v, seen %q\n\tLua: %q", unseen(c), w.lua.seen, w.lua.reply))
	if verdict != infuse.VerdictRefused {
		w.outgrown = append(w.outgrown, w.record.Generation)
		w.record, w.saved = want, now
	}
	return w.agrees(got, want, verdict)
}

// unseen leaves out what is printed by itself.
func unseen(c infuse.Change) infuse.Change {
	c.Seen = infuse.Record{}
	return c
}

// luaAnswer is what the storage made of the script's reply.
type luaAnswer struct {
	record          infuse.Record
	verdict         infuse.Verdict
	err             error
	asked, answered time.Time // by this process's clock
}

func (w *twin) agrees(got luaAnswer, want infuse.Record, verdict infuse.Verdict) error {
	if got.err != nil {
		return got.err
	}
	now := w.lua.judgedAt()
	line, tokens := scriptsLine(want, now), strings.Join(want.Tokens, ",")
	reply := []any{int64(verdict), strconv.FormatInt(now.UnixMilli(), 10), line, tokens}
	if !slices.Equal(w.lua.reply, reply) {
		return fmt.Errorf("%s: Go makes it\n\t%q, Lua\n\t%q", w.circuit, reply, w.lua.reply)
	}
	if got.verdict != verdict || !got.reads(want, now) {
		return fmt.Errorf("%s: the storage takes\n\t%q\nfor verdict %d, %+v", w.circuit, reply, got.verdict, got.record)
	}
	return nil
}

// reads reports whether the storage's record is the wanted one, with the times
// moved from Redis's clock, where it is now, to this process's.
func (got luaAnswer) reads(want infuse.Record, now time.Time) bool {
	r := got.record
	if r.State != want.State || r.Generation != want.Generation || r.Failures != want.Failures || r.Successes != want.Successes ||
		!slices.Equal(r.Tokens, want.Tokens) || len(r.Trials) != len(want.Trials) {
		return false
	}
	same := func(t, wanted time.Time) bool {
		left := max(0, wanted.Sub(now))
		return !t.Before(got.asked.Add(left)) && !t.After(got.answered.Add(left))
	}
	for i, trial := range want.Trials {
		if r.Trials[i].ID != trial.ID || !same(r.Trials[i].Deadline, trial.Deadline) {
			return false
		}
	}
	return r.State != infuse.StateOpen && r.DueAt.IsZero() || r.State == infuse.StateOpen && same(r.DueAt, want.DueAt)
}

// judgedAt is the time at which the script says that it ran last.
func (lua *luaSide) judgedAt() time.Time {
	ms, _ := strconv.ParseInt(fmt.Sprint(lua.reply[1]), 10, 64)
	return time.UnixMilli(ms)
}

// scriptsLine is the record as circuit.lua writes it.
func scriptsLine(r infuse.Record, now time.Time) string {
	wait := int64(0)
	if r.State == infuse.StateOpen {
		wait = max(0, r.DueAt.Sub(now).Milliseconds())
	}
	trials := "-"
	for i, trial := range r.Trials {
		if i == 0 {
			trials = ""
		} else {
			trials += ","
		}
		trials += fmt.Sprintf("%s=%d", trial.ID, max(0, trial.Deadline.Sub(now).Milliseconds()))
	}
	return fmt.Sprintf("1 %d %d %d %d %d %s", r.State, r.Generation, r.Failures, r.Successes, wait, trials)
}

// last is the latest deadline in the record, or the zero Time.
func last(r infuse.Record) time.Time {
	t := r.DueAt
	for _, trial := range r.Trials {
		if trial.Deadline.After(t) {
			t = trial.Deadline
		}
	}
	return t
}

// outlives checks the life of the circuit's key: one that says nothing is not
// there, and any other ends, but after all that the record waits for.
func (w *twin) outlives() error {
	life, err := w.lua.client.PTTL(context.Background(), w.key()).Result()
	if err != nil {
		return err
	}
	says := !w.record.Healthy() || w.record.Generation > 0
	switch ahead := last(w.record).Sub(w.lua.judgedAt()); {
	case !says && life != -2:
		return fmt.Errorf("%s: the key of a circuit that never failed lives for %v", w.circuit, life)
	case says && life <= max(0, ahead):
		return fmt.Errorf("%s: the key lives for %v, its record for %v", w.circuit, life, ahead)
	}
	return nil
}

func (w *twin) key() string { return "infuse:{" + w.circuit + "}" }

// passTime moves miniredis's clocks: mostly by less than the deadlines of the
// changes, now and then by so much that keys expire.
func (w *twin) passTime() {
	switch {
	case w.roll.oneIn(2):
	case w.roll.oneIn(800):
		w.lua.advance(2 * time.Hour)
	case w.roll.oneIn(40):
		w.lua.advance(2 * time.Second)
	default:
		w.lua.advance(time.Duration(w.roll(10)) * time.Millisecond)
	}
}

// mayBeForgotten lets Go forget a record whose key has expired on miniredis,
// if nothing in it was worth keeping: a closed circuit for a second since it
// has changed, any other for a minute since the last it waited for.
func (w *twin) mayBeForgotten() error {
	if w.lua.mini.Exists(w.key()) {
		return nil
	}
	kept := w.lua.clock.Sub(w.saved)
	if !last(w.record).Before(w.saved) {
		kept = w.lua.clock.Sub(last(w.record))
	}
	says := w.record.Generation > 0 || !w.record.Healthy()
	if w.record.Healthy() && says && kept < time.Second || !w.record.Healthy() && kept < time.Minute {
		return fmt.Errorf("%s: lost after %v: %+v", w.circuit, kept, w.record)
	}
	w.story = append(w.story, "the key expires")
	w.record = infuse.Record{}
	return nil
}

// change makes any change: more often one that fits the circuit as it is.
func (w *twin) change() infuse.Change {
	kinds := []infuse.ChangeKind{
		infuse.ChangeReport, infuse.ChangeReport, infuse.ChangeReport, infuse.ChangeReport,
		infuse.ChangeAcquire, infuse.ChangeAcquire, infuse.ChangeAcquire,
		infuse.ChangeSettle, infuse.ChangeSettle, infuse.ChangeSettle,
		infuse.ChangeMove, infuse.ChangeSync,
	}
	c := infuse.Change{Kind: kinds[w.roll(len(kinds))], Seen: w.seen(), Limits: w.limits()}
	if w.patient && !w.roll.oneIn(32) {
		c.Kind = infuse.ChangeReport
	}
	c.Token = w.token(c.Kind)
	switch c.Kind {
	case infuse.ChangeReport:
		c.Failures, c.FailuresAfter, c.Cleared = w.roll(3), w.roll(3), w.roll.oneIn(4)
		if w.patient {
			c.Failures, c.Cleared = 1, w.roll.oneIn(256)
		}
	case infuse.ChangeSettle:
		c.Outcome = infuse.Outcome(w.roll(3))
	case infuse.ChangeMove:
		c.To = infuse.State(w.roll(3))
	}
	return c
}

// token is a new one, or one that was there before, or a trial's that runs.
func (w *twin) token(kind infuse.ChangeKind) string {
	if trials := w.record.Trials; kind == infuse.ChangeSettle && len(trials) > 0 && !w.roll.oneIn(4) {
		return trials[w.roll(len(trials))].ID
	}
	if n := len(w.tokens); n > 0 && w.roll.oneIn(4) {
		return w.tokens[n-1-w.roll(min(n, 100))]
	}
	w.tokens = append(w.tokens, fmt.Sprint("token.", len(w.tokens)))
	return w.tokens[len(w.tokens)-1]
}

// seen is the circuit as it is, or as it was, or as it has not been yet.
func (w *twin) seen() infuse.Record {
	s := infuse.Record{State: w.record.State, Generation: w.record.Generation}
	if w.roll.oneIn(4) {
		s.State = infuse.State(w.roll(3))
	}
	switch n := len(w.outgrown); {
	case n > 0 && w.roll.oneIn(6):
		s.Generation = w.outgrown[n-1-w.roll(min(n, 100))]
	case w.roll.oneIn(12) && !w.patient:
		s.Generation += int64(w.roll(5))
	}
	s.Failures, s.Successes = w.roll(3), w.roll(3)
	switch s.State {
	case infuse.StateOpen:
		s.DueAt = w.around()
	case infuse.StateHalfOpen:
		for range w.roll(3) {
			s.Trials = append(s.Trials, infuse.Trial{ID: w.token(infuse.ChangeAcquire), Deadline: w.around()})
		}
	}
	return s
}

// around is a time on this process's clock, or none.
func (w *twin) around() time.Time {
	if w.roll.oneIn(8) {
		return time.Time{}
	}
	return time.Now().Add(w.milliseconds() - 5*time.Millisecond)
}

func (w *twin) limits() infuse.Limits {
	l := infuse.Limits{
		FailMax:          1 + w.roll(6),
		ResetTimeout:     w.milliseconds(),
		SuccessThreshold: 1 + w.roll(3),
		MaxTrials:        1 + w.roll(3),
		TrialTimeout:     w.milliseconds(),
	}
	if w.patient {
		l.FailMax = 200
	}
	return l
}

// milliseconds returns 1 to 50 ms, most often few; and rarely hours, which a
// key is to outlive too.
func (w *twin) milliseconds() time.Duration {
	if w.roll.oneIn(100) {
		return 3 * time.Hour
	}
	return time.Duration(1+w.roll(1+w.roll(50))) * time.Millisecond
}
