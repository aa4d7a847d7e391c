package infuse

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// FuzzParseKnown has any values in a reply: anybody may have written the hash.
func FuzzParseKnown(f *testing.F) {
	text := string(AppendRecord(nil, Record{State: StateOpen, DueAt: time.UnixMilli(1_790_000_001_000)}, time.UnixMilli(1_790_000_000_000)))
	f.Add("1790000000000001", "0", "1790000000000", "3", "", text)
	f.Add("1", "1", "1", "0", "1000;1,1,1", "")
	f.Fuzz(func(t *testing.T, v, g, written, count, window, record string) {
		k := parseKnown([replyParts]string{v, g, "1790000000000", written, count, window, record}, time.Now())
		require.Equal(t, time.UnixMilli(1_790_000_000_000), k.redisTime, "the time is Redis's own")
		if k.problem != nil {
			require.Equal(t, Record{}, k.record)
			return
		}
		requireBounds(t, k.local(), time.Now())
	})
}

// These tests hold RedisStorage against Record.Apply: the same random changes
// go through both, sent by several storages that each know what they heard
// last. After every step, verdicts and records are the same.

func TestRedisDoesWhatApplyDoesOnARealRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	twins := twinsOf(server.Client(), realClock{}, redistest.NewDice(redistest.Seed(t), 0))
	twins.compare(t, 6_000)
}

func TestRedisDoesWhatApplyDoesOnMiniredis(t *testing.T) {
	t.Parallel()
	twins := twinsOnMiniredis(t)
	twins.roll = redistest.NewDice(redistest.Seed(t), 1)
	twins.compare(t, 6_000)
}

func FuzzRedisAgainstApply(f *testing.F) {
	for seed := range uint64(8) {
		roll := redistest.NewDice(seed, 2)
		corpus := make([]byte, 100*(seed+1))
		for i := range corpus {
			corpus[i] = byte(roll(256))
		}
		f.Add(corpus)
	}
	shared := twinsOnMiniredis(f)
	clock := shared.clock.(*miniClock)
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, shared.client.FlushAll(t.Context()).Err())
		data = data[:min(len(data), 1<<12)]
		w := twinsOf(shared.client, clock, bytesAsDice(&data)).newTwin()
		for len(data) > 0 {
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// bytesAsDice uses up a byte a roll, and rolls zeros in the end.
func bytesAsDice(data *[]byte) redistest.Dice {
	return func(n int) int {
		if len(*data) == 0 {
			return 0
		}
		b := (*data)[0]
		*data = (*data)[1:]
		return int(b) % n
	}
}

// redisClock is Redis's clock. unit is long beside the time that a test takes,
// or what a step may take at most: no step is judged within it of a deadline.
type redisClock interface {
	now() time.Time
	advance(d time.Duration)
	unit() time.Duration
	width() time.Duration         // of a bucket, whose edges no step is near
	stalled(since time.Time) bool // whether a step that began then has taken longer than it may
}

type realClock struct{}

func (realClock) now() time.Time { return time.Now() }

func (realClock) advance(d time.Duration) { time.Sleep(d) }

func (realClock) unit() time.Duration { return 30 * time.Millisecond }

func (realClock) width() time.Duration { return 320 * time.Millisecond }

func (c realClock) stalled(since time.Time) bool { return time.Since(since) > c.unit() }

// miniClock moves both of miniredis's clocks: TIME, and that by which keys expire.
type miniClock struct {
	mini *redistest.Mini
	at   time.Time
}

func newMiniClock(mini *redistest.Mini) *miniClock {
	c := &miniClock{mini: mini, at: time.UnixMilli(1_790_000_000_000)}
	c.advance(0)
	return c
}

func (c *miniClock) now() time.Time { return c.at }

func (c *miniClock) unit() time.Duration { return 2 * time.Second }

func (c *miniClock) width() time.Duration { return 8 * time.Second }

// The storages of this process go by its own clock, and times agree to a second.
func (c *miniClock) stalled(since time.Time) bool { return time.Since(since) > time.Second/2 }

func (c *miniClock) advance(d time.Duration) {
	c.at = c.at.Add(d)
	c.mini.SetTime(c.at)
	if d > 0 {
		c.mini.FastForward(d)
	}
}

// twins are circuits on one server, each beside the Record that it should be.
type twins struct {
	client   *redis.Client
	storages []*RedisStorage
	clock    redisClock
	roll     redistest.Dice
	circuits int
}

func twinsOf(client *redis.Client, clock redisClock, roll redistest.Dice) *twins {
	all := &twins{client: client, clock: clock, roll: roll}
	for range 3 {
		all.storages = append(all.storages, NewRedisStorage(client, RedisOptions{}))
	}
	return all
}

func twinsOnMiniredis(tb testing.TB) *twins {
	mini := redistest.StartMini(tb)
	return twinsOf(mini.Client(), newMiniClock(mini), nil)
}

func (all *twins) compare(t *testing.T, steps int) {
	if testing.Short() {
		steps /= 10
	} else if !long() {
		steps /= 10
	}
	for stalls := 0; steps > 0; {
		w := all.newTwin()
		for range 1 + all.roll(100) {
			steps--
			err := w.step()
			if errors.Is(err, errStalled) && stalls < 200 {
				stalls++
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

var errStalled = errors.New("the machine stalled")

// twin is one circuit twice: in Redis, and as the Record that Apply makes.
type twin struct {
	*twins
	circuit string
	model   Record   // its times are on Redis's clock
	seen    []Record // by storage: what it received last, on this process's clock
	numbers []uint64
	sent    []Change // all, for changes that come twice
	story   []string
	checked time.Time // when no deadline was near
}

func (all *twins) newTwin() *twin {
	all.circuits++
	n := len(all.storages)
	return &twin{twins: all, circuit: fmt.Sprint("twin", all.circuits), seen: make([]Record, n), numbers: make([]uint64, n)}
}

func (w *twin) step() error {
	i := w.roll(len(w.storages))
	c := w.change(i)
	if err := w.passTime(c); err != nil {
		return err
	}
	c.Seen = w.see(i)
	here, now := time.Now(), w.clock.now()
	theirs := c
	theirs.Seen, theirs.Counted = c.Seen.translated(here, now), translated(c.Counted, here, now)
	want, wantVerdict := w.model.Apply(theirs, now)
	got, verdict, err := w.storages[i].Apply(context.Background(), w.circuit, c)
	w.story = append(w.story, fmt.Sprintf("%v storage %d: %+v\n\t-> %v %+v %v", now.Sub(time.UnixMilli(1_790_000_000_000)), i, theirs, verdict, got, err))
	if err == nil && wantVerdict != verdict {
		err = fmt.Errorf("verdict %d, want %d", verdict, wantVerdict)
	}
	if err == nil {
		w.keep(want, wantVerdict, c, got)
		err = w.agrees(got, here, now)
	}
	if err == nil && w.roll.OneIn(3) {
		got, err = w.storages[w.roll(len(w.storages))].Load(context.Background(), w.circuit)
		if err == nil {
			err = w.agrees(got, time.Now(), w.clock.now())
		}
	}
	if err != nil && w.clock.stalled(w.checked) {
		return fmt.Errorf("%w: %w", errStalled, err)
	}
	if err != nil {
		return fmt.Errorf("%w\nThe steps of this circuit:\n%s", err, strings.Join(w.story, "\n"))
	}
	w.seen[i] = got
	return nil
}

// keep makes the wanted record the model's, with the generation that the
// storage gave it by its clock.
func (w *twin) keep(want Record, verdict Verdict, c Change, got Record) {
	if verdict == VerdictRefused {
		return
	}
	if says := len(c.Settled) > 0 || c.counts() || c.Manual != nil; !says && !w.remembers(c) {
		want.lastNumbers = w.model.lastNumbers // which is as good: it says nothing the second time, too
	}
	if want.Generation > w.model.Generation && got.Generation > w.model.Generation {
		theirs := []int64{got.Since, got.Opened, got.Manual, got.Generation}
		for i, g := range []*int64{&want.Since, &want.Opened, &want.Manual, &want.Generation} {
			if *g > w.model.Generation && theirs[i] > w.model.Generation {
				*g = theirs[i]
			}
		}
	}
	w.model = want
}

func (w *twin) remembers(c Change) bool {
	number := w.client.HGet(context.Background(), w.storages[0].key(w.circuit), "s:"+c.Source).Val()
	return strings.HasPrefix(number, fmt.Sprintf("%020d", c.Number))
}

// agrees compares a record with the model's. The one's clock says here, the
// other's says now.
func (w *twin) agrees(got Record, here, now time.Time) error {
	got, want := got.At(here), w.model.At(now).translated(now, here)
	text := func(r Record) string {
		return fmt.Sprint(r.State, r.Generation, r.Since, r.Opened, r.Manual, r.Failures, r.Successes, r.Threshold, r.Score, r.Rated, r.Witness, r.OpenDuration, r.By, r.Cause, r.Window.Width, len(r.Window.Buckets), len(r.Trials))
	}
	if text(got) != text(want) {
		return fmt.Errorf("%s is\n%s, not\n%s", w.circuit, text(got), text(want))
	}
	times := func(r Record) []time.Time {
		all := append([]time.Time{r.DueAt, r.RetryAt}, deadlines(r.Trials)...)
		for i, t := range all {
			if !t.IsZero() && t.Before(here) { // it is over: since when is not kept
				all[i] = here
			}
		}
		return append(all, r.SuspectAt, r.DismissedAt, r.ClosedAt)
	}
	for i, t := range times(got) {
		if t.IsZero() != times(want)[i].IsZero() || t.Sub(times(want)[i]).Abs() > time.Second {
			return fmt.Errorf("%s has the times\n%v, not\n%v", w.circuit, times(got), times(want))
		}
	}
	for i, b := range got.Window.Buckets {
		if theirs := want.Window.Buckets[i]; b.Start.Sub(theirs.Start).Abs() > time.Second || b.Calls != theirs.Calls || b.Failures != theirs.Failures {
			return fmt.Errorf("%s has the window %v, not %v", w.circuit, got.Window, want.Window)
		}
	}
	for i := range got.Trials {
		if got.Trials[i].ID != want.Trials[i].ID || got.Trials[i].Stale != want.Trials[i].Stale {
			return fmt.Errorf("%s has the trials %v, not %v", w.circuit, got.Trials, want.Trials)
		}
	}
	return nil
}

// passTime moves the clock, and then past all deadlines that are near. On miniredis, the
// key may have expired: then there is nothing left that was worth keeping.
func (w *twin) passTime(c Change) error {
	_, virtual := w.clock.(*miniClock)
	switch {
	case !virtual || w.roll.OneIn(2):
	case w.roll.OneIn(100):
		w.advance(5 * time.Hour)
	default:
		w.advance(time.Duration(w.roll(10)) * w.clock.unit())
	}
	for w.checked = time.Now(); w.nearDeadline(c); w.checked = time.Now() {
		w.advance(w.clock.unit() / 3)
	}
	if !virtual {
		return nil
	}
	kept, err := w.client.Exists(context.Background(), w.storages[0].key(w.circuit)).Result()
	if err != nil || kept == 1 || w.model.Generation == 0 && w.model.Failures == 0 && w.model.lastNumbers == nil {
		return err
	}
	if w.clock.now().Before(w.model.keepUntil(time.Time{})) {
		return fmt.Errorf("%s: lost: %+v", w.circuit, w.model)
	}
	w.story = append(w.story, "the key expires")
	w.model = Record{}
	return nil
}

// advance moves a clock that is not this process's: so that the two go on
// together, what it knows becomes older instead.
func (w *twin) advance(d time.Duration) {
	w.clock.advance(d)
	if _, virtual := w.clock.(*miniClock); !virtual {
		return
	}
	for i, s := range w.storages {
		for key, k := range s.known.all {
			if k.ahead += d; k.record != nil {
				older := *k.record
				older.receivedAt = older.receivedAt.Add(-d)
				k.record = &older
			}
			s.known.all[key] = k
		}
		w.seen[i] = w.seen[i].translated(time.Now(), time.Now().Add(-d))
	}
}

func (w *twin) nearDeadline(c Change) bool {
	now := w.clock.now()
	for _, seen := range w.seen { // of which one may be restored
		if seen = seen.translated(time.Now(), now); seen.Generation > 0 && w.near(&seen, &c, now) {
			return true
		}
	}
	return w.near(&w.model, &c, now)
}

func (w *twin) near(r *Record, c *Change, now time.Time) bool {
	l := &c.Limits
	all := append([]time.Time{r.DueAt, r.dueAt(l), r.RetryAt, r.noSuspicionUntil(l), r.DueAt.Add(l.Suspicion - c.OpenFor)}, deadlines(r.Trials)...)
	all = append(all, r.SuspectAt.Add(l.Suspicion), r.SuspectAt.Add(time.Duration(evidence.rated)*l.Suspicion))
	for i := range r.Trials {
		all = append(all, r.Trials[i].deadline(l))
	}
	edge := now.Truncate(w.clock.width()) // of buckets
	all = append(all, edge, edge.Add(w.clock.width()))
	for last := r.OpenDuration; last > time.Second; last /= 2 { // each step of what it forgets
		all = append(all, r.ClosedAt.Add(2*(r.OpenDuration-last)), r.ClosedAt.Add(2*r.OpenDuration-last))
	}
	return slices.ContainsFunc(all, func(t time.Time) bool { return t.Sub(now).Abs() <= w.clock.unit() })
}

// change makes any change, or sends an old one again.
func (w *twin) change(storage int) Change {
	if n := len(w.sent); n > 0 && w.roll.OneIn(8) {
		return w.sent[n-1-w.roll(min(n, 30))]
	}
	c := Change{Limits: w.limits(), By: fmt.Sprint("instance", storage), Cause: fmt.Sprint("cause ", w.roll(3))}
	if !w.roll.OneIn(8) {
		w.numbers[storage]++
		c.Source, c.Number = fmt.Sprint("source", storage), math.MaxUint64-1_000_000+w.numbers[storage]
	}
	if !w.roll.OneIn(3) {
		lead, streak := w.roll(3), w.roll(3)
		c.Calls = Calls{Failures: lead + streak, Successes: 1 + w.roll(2), Lead: lead, Streak: streak}
		if w.roll.OneIn(2) {
			c.Calls = Calls{Failures: 1 + lead, Lead: 1 + lead, Streak: 1 + lead}
		}
	}
	for range w.roll(3) { // in the middle of buckets
		failures, middle := w.roll(4), w.clock.width()/2+time.Duration(w.roll(14))*w.clock.width()
		c.Counted = append(c.Counted, Bucket{
			Start: time.Now().Add(-time.Duration(w.clock.now().UnixMilli()%w.clock.width().Milliseconds())*time.Millisecond - middle + w.clock.width()),
			Calls: 1 + failures + w.roll(10), Failures: failures,
		})
	}
	if w.roll.OneIn(4) {
		c.OpenFor = w.duration()
	}
	if w.roll.OneIn(4) {
		c.RequestTrial = fmt.Sprint("trial", w.roll(6))
	}
	for range w.roll(3) {
		if !w.roll.OneIn(3) {
			c.Settled = append(c.Settled, Settlement{ID: fmt.Sprint("trial", w.roll(6)), Outcome: Outcome(w.roll(3)), OpenFor: time.Duration(w.roll(2)) * w.duration()})
		}
	}
	if w.roll.OneIn(8) {
		c.Manual = &ManualState{State(w.roll(3))}
	}
	w.sent = append(w.sent, c)
	return c
}

// see is what the storage heard last, or the present, or of the future.
func (w *twin) see(storage int) Record {
	switch {
	case w.roll.OneIn(3):
		return w.model.translated(w.clock.now(), time.Now())
	case w.roll.OneIn(12):
		seen := w.seen[storage]
		seen.Generation += int64(w.roll(4))
		seen.State = State(w.roll(3))
		if _, virtual := w.clock.(*miniClock); virtual {
			seen.DueAt = time.Now().Add(time.Duration(w.roll(3)-1) * 6 * time.Hour)
		}
		return seen
	}
	return w.seen[storage]
}

func (w *twin) limits() Limits {
	l := Limits{
		FailMax:          1 + w.roll(6),
		ResetTimeout:     w.duration(),
		SuccessThreshold: 1 + w.roll(3),
		MaxTrials:        1 + w.roll(3),
		TrialTimeout:     w.duration(),
		Suspicion:        time.Millisecond + time.Duration(w.roll(2))*w.duration(), // 0 is for local records, which are in no storage
	}
	if w.roll.OneIn(2) {
		l.FailureRate, l.MinCalls = float64(1+w.roll(10))/10, 1+w.roll(20)
		l.Window = windowBuckets * w.clock.width() * time.Duration(1+w.roll(2))
		if w.roll.OneIn(2) {
			l.FailMax = unlimited
		}
	}
	if w.roll.OneIn(2) {
		l.MaxResetTimeout = l.ResetTimeout * time.Duration(1+w.roll(8))
	}
	return l
}

// duration is one that ends in a few steps, or not in this test.
func (w *twin) duration() time.Duration {
	if _, virtual := w.clock.(*miniClock); virtual && w.roll.OneIn(3) {
		return time.Duration(2+w.roll(5)) * w.clock.unit()
	}
	if w.roll.OneIn(5) {
		return 3 * w.clock.unit()
	}
	return time.Duration(2+w.roll(3)) * time.Hour
}
