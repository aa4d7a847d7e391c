package infuse

import (
	"context"
	"fmt"
	"math"
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

	"github.com/infuse-go/infuse/internal/redistest"
)

// These tests hold RedisStorage against Record.Apply: the same random changes
// go through both, sent by several storages that each know what they heard
// last. After every step, verdicts and records are the same.

func TestRedisDoesWhatApplyDoesOnARealRedis(t *testing.T) {
	server := redistest.Start(t)
	twins := twinsOf(server.Client(), realClock{}, newDice(seedOf(t), 0))
	twins.compare(t, 6_000)
}

func TestRedisDoesWhatApplyDoesOnMiniredis(t *testing.T) {
	twins := twinsOnMiniredis(t)
	twins.roll = newDice(seedOf(t), 1)
	twins.compare(t, 6_000)
}

func FuzzRedisAgainstApply(f *testing.F) {
	for seed := range uint64(8) {
		roll := newDice(seed, 2)
		corpus := make([]byte, 100*(seed+1))
		for i := range corpus {
			corpus[i] = byte(roll(256))
		}
		f.Add(corpus)
	}
	shared := twinsOnMiniredis(f)
	clock := shared.clock.(*miniClock)
	f.Fuzz(func(t *testing.T, data []byte) {
		clock.mini.FlushAll()
		data = data[:min(len(data), 1<<12)]
		w := twinsOf(shared.client, clock, bytesAsDice(&data)).newTwin()
		for len(data) > 0 {
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// dice returns a number from 0 to n-1.
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

// seedOf is new in every run; MODEL_SEED repeats one.
func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("MODEL_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: MODEL_SEED=%d", seed)
	return seed
}

// redisClock is Redis's clock. unit is long beside the time that a test takes,
// or what a step may take at most: no step is judged within it of a deadline.
type redisClock interface {
	now() time.Time
	advance(d time.Duration)
	unit() time.Duration
}

type realClock struct{}

func (realClock) now() time.Time          { return time.Now() }
func (realClock) advance(d time.Duration) { time.Sleep(d) }
func (realClock) unit() time.Duration     { return 20 * time.Millisecond }

// miniClock moves both of miniredis's clocks: TIME, and that by which keys expire.
type miniClock struct {
	mini *miniredis.Miniredis
	at   time.Time
}

func newMiniClock(mini *miniredis.Miniredis) *miniClock {
	c := &miniClock{mini: mini, at: time.UnixMilli(1_790_000_000_000)}
	c.advance(0)
	return c
}

func (c *miniClock) now() time.Time      { return c.at }
func (c *miniClock) unit() time.Duration { return 5 * time.Second }
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
	roll     dice
	circuits int
}

func twinsOf(client *redis.Client, clock redisClock, roll dice) *twins {
	all := &twins{client: client, clock: clock, roll: roll}
	for range 3 {
		all.storages = append(all.storages, NewRedisStorage(client, RedisOptions{}))
	}
	return all
}

func twinsOnMiniredis(tb testing.TB) *twins {
	mini := miniredis.RunT(tb)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	tb.Cleanup(func() { _ = client.Close() })
	return twinsOf(client, newMiniClock(mini), nil)
}

func (all *twins) compare(t *testing.T, steps int) {
	if testing.Short() {
		steps /= 10
	}
	for steps > 0 {
		w := all.newTwin()
		for range 1 + all.roll(100) {
			steps--
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// twin is one circuit twice: in Redis, and as the Record that Apply makes.
type twin struct {
	*twins
	circuit string
	model   Record   // its times are on Redis's clock
	seen    []Record // by storage: what it was told last, on this process's clock
	numbers []uint64
	sent    []Change // all, for changes that come twice
	story   []string
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
	theirs.Seen = c.Seen.translated(here, now)
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
	if err == nil && w.roll.oneIn(3) {
		got, err = w.storages[w.roll(len(w.storages))].Load(context.Background(), w.circuit)
		if err == nil {
			err = w.agrees(got, time.Now(), w.clock.now())
		}
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
	if says := len(c.Settled) > 0 || c.Calls != (Calls{}) || c.Move != nil; !says && !w.remembers(c) {
		want.heard = w.model.heard // which is as good: it says nothing the second time, too
	}
	if want.Generation > w.model.Generation && got.Generation > w.model.Generation {
		theirs := []int64{got.Since, got.Opened, got.Moved, got.Generation}
		for i, g := range []*int64{&want.Since, &want.Opened, &want.Moved, &want.Generation} {
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
	want := w.model.At(now).translated(now, here)
	text := func(r Record) string {
		return fmt.Sprint(r.State, r.Generation, r.Since, r.Opened, r.Moved, r.Failures, r.Successes, r.Balance, r.By, r.Cause, len(r.Trials))
	}
	if text(got) != text(want) {
		return fmt.Errorf("%s is\n%s, not\n%s", w.circuit, text(got), text(want))
	}
	times := func(r Record) []time.Time {
		all := append([]time.Time{r.DueAt, r.OpensAt, r.CalmUntil}, deadlines(r.Trials)...)
		for i, t := range all {
			if !t.IsZero() && t.Before(here) { // it is over: since when is not kept
				all[i] = here
			}
		}
		all = append(all, r.SuspectAt)
		if r.State == StateClosed && r.Failures > 0 && !r.suspect() {
			all = append(all, r.RowSince)
		}
		return all
	}
	for i, t := range times(got) {
		if t.IsZero() != times(want)[i].IsZero() || t.Sub(times(want)[i]).Abs() > time.Second {
			return fmt.Errorf("%s has the times\n%v, not\n%v", w.circuit, times(got), times(want))
		}
	}
	for i := range got.Trials {
		if got.Trials[i].ID != want.Trials[i].ID || got.Trials[i].Stale != want.Trials[i].Stale {
			return fmt.Errorf("%s has the trials %v, not %v", w.circuit, got.Trials, want.Trials)
		}
	}
	return nil
}

// passTime moves the clock, and then away from all deadlines. On miniredis, the
// key may have expired: then there is nothing left that was worth keeping.
func (w *twin) passTime(c Change) error {
	mini, virtual := w.clock.(*miniClock)
	switch {
	case !virtual || w.roll.oneIn(2):
	case w.roll.oneIn(100):
		w.advance(5 * time.Hour)
	default:
		w.advance(time.Duration(w.roll(10)) * w.clock.unit())
	}
	for w.nearDeadline(c) {
		w.advance(w.clock.unit() / 3)
	}
	key := w.storages[0].key(w.circuit)
	if !virtual || mini.mini.Exists(key) || w.model.Generation == 0 && w.model.Failures == 0 && w.model.heard == nil {
		return nil
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
			k.at = k.at.Add(-d)
			s.known.all[key] = k
		}
		w.seen[i] = w.seen[i].translated(time.Now(), time.Now().Add(-d))
	}
}

func (w *twin) nearDeadline(c Change) bool {
	now := w.clock.now()
	r := w.model
	all := append([]time.Time{r.DueAt, r.OpensAt, r.CalmUntil, r.SuspectAt.Add(c.Limits.Suspicion)}, deadlines(r.Trials)...)
	return slices.ContainsFunc(all, func(t time.Time) bool { return t.Sub(now).Abs() <= w.clock.unit() })
}

// change makes any change, or sends an old one again.
func (w *twin) change(storage int) Change {
	if n := len(w.sent); n > 0 && w.roll.oneIn(8) {
		return w.sent[n-1-w.roll(min(n, 30))]
	}
	c := Change{Limits: w.limits(), By: fmt.Sprint("instance", storage), Cause: fmt.Sprint("cause ", w.roll(3))}
	if !w.roll.oneIn(8) {
		w.numbers[storage]++
		c.Source, c.Number = fmt.Sprint("source", storage), math.MaxUint64-1_000_000+w.numbers[storage]
	}
	if !w.roll.oneIn(3) {
		lead, streak := w.roll(3), w.roll(3)
		c.Calls = Calls{Failures: lead + streak, Successes: 1 + w.roll(2), Lead: lead, Streak: streak}
		if w.roll.oneIn(2) {
			c.Calls = Calls{Failures: 1 + lead, Lead: 1 + lead, Streak: 1 + lead}
		}
	}
	if w.roll.oneIn(4) {
		c.OpenFor = w.duration()
	}
	if w.roll.oneIn(4) {
		c.Ask = fmt.Sprint("trial", w.roll(6))
	}
	for range w.roll(3) {
		if !w.roll.oneIn(3) {
			c.Settled = append(c.Settled, Settlement{ID: fmt.Sprint("trial", w.roll(6)), Outcome: Outcome(w.roll(3)), OpenFor: time.Duration(w.roll(2)) * w.duration()})
		}
	}
	if w.roll.oneIn(8) {
		c.Move = &Move{State(w.roll(3))}
	}
	w.sent = append(w.sent, c)
	return c
}

// see is what the storage heard last, or the present, or of the future.
func (w *twin) see(storage int) Record {
	switch {
	case w.roll.oneIn(3):
		return w.model.translated(w.clock.now(), time.Now())
	case w.roll.oneIn(12):
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
	return Limits{
		FailMax:          1 + w.roll(6),
		ResetTimeout:     w.duration(),
		SuccessThreshold: 1 + w.roll(3),
		MaxTrials:        1 + w.roll(3),
		TrialTimeout:     w.duration(),
		Suspicion:        time.Duration(w.roll(2)) * w.duration(),
	}
}

// duration is one that ends in a few steps, or not in this test.
func (w *twin) duration() time.Duration {
	if _, virtual := w.clock.(*miniClock); virtual && w.roll.oneIn(3) {
		return time.Duration(2+w.roll(5)) * w.clock.unit()
	}
	if w.roll.oneIn(5) {
		return 3 * w.clock.unit()
	}
	return time.Duration(2+w.roll(3)) * time.Hour
}

// TestManyWritersCountExactly has storages that know nothing of each other.
func TestManyWritersCountExactly(t *testing.T) {
	const writers, each = 8, 50
	server := redistest.Start(t)
	for _, suspicion := range []time.Duration{0, time.Hour / 4} {
		limits := Limits{FailMax: writers*each + 1, ResetTimeout: time.Hour, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: time.Hour, Suspicion: suspicion}
		circuit := fmt.Sprint("suspicion ", suspicion)
		var running sync.WaitGroup
		for writer := range writers {
			running.Go(func() {
				s := NewRedisStorage(server.Client(), RedisOptions{})
				for i := range each {
					c := Change{Source: fmt.Sprint(writer), Number: uint64(i + 1), Limits: limits, Calls: Calls{Failures: 1, Lead: 1, Streak: 1}}
					if writer == 0 && i == each/2 {
						c.Calls.Failures, c.Calls.Lead, c.Calls.Streak = 2, 2, 2 // so the limit is reached
					}
					_, verdict, err := s.Apply(t.Context(), circuit, c)
					if err != nil || verdict == VerdictRefused {
						t.Errorf("failure %d: verdict %d, %v", i, verdict, err)
					}
				}
			})
		}
		running.Wait()
		r, err := NewRedisStorage(server.Client(), RedisOptions{}).Load(t.Context(), circuit)
		require.NoError(t, err)
		if suspicion == 0 {
			require.Equal(t, StateOpen, r.State)
			require.Equal(t, limits.FailMax, r.Failures)
		} else {
			require.True(t, r.suspect())
			require.Equal(t, limits.FailMax, r.Balance)
		}
	}
}
