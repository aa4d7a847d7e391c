package pybreakerstorage

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// Options are the settings of a Storage. The zero value is for the keys of
// pybreaker, with circuits named by their namespaces.
type Options struct {
	// Layout is whose keys are shared: Pybreaker, or Infuse.
	Layout Layout

	// Namespace returns the namespace under which the Python services keep a
	// circuit. By default it is the circuit's name. It must be pure, and no two
	// circuits may have one namespace: they would be one circuit.
	Namespace func(circuit string) string

	// ResetTimeout is for how long a circuit that Python has opened stays open
	// for Go: the reset_timeout of the Python services. 0 is their default: 60 s
	// for Pybreaker, 15 s for Infuse. A circuit that Go has opened stays open for
	// Config.ResetTimeout.
	ResetTimeout time.Duration

	// PollInterval is how often a watched circuit is read: 1 s if 0, each time
	// give or take half. A move by another process is known that late.
	PollInterval time.Duration
}

// Storage is an infuse.Storage on the keys of pybreaker or of Infuse for Python.
// It starts one goroutine for each circuit that is watched, which ends when the
// watcher stops. The client stays its caller's.
//
// See the package's documentation for what Python and Go do not tell each other.
type Storage struct {
	client       redis.Scripter
	layout       Layout
	namespace    func(string) string
	resetTimeout time.Duration
	pollInterval time.Duration

	turns [64]sync.Mutex // by name: the changes of one process do not contend in Redis
	ahead time.Duration  // of all clocks: tests need not wait
}

var _ infuse.Storage = (*Storage)(nil)

//go:embed swap.lua
var swapSource string

var swapScript = redis.NewScript(swapSource)

// New returns a storage on the client, which is any of go-redis v9. It does no
// I/O. Where the client is a Cluster's, namespaces need a hash tag: "{orders}".
func New(client redis.Scripter, opts Options) (*Storage, error) {
	var invalid []error
	if client == nil {
		invalid = append(invalid, errors.New("pybreakerstorage: the client is nil"))
	}
	if opts.Layout > Infuse {
		invalid = append(invalid, fmt.Errorf("pybreakerstorage: Options.Layout is %v: must be Pybreaker or Infuse", opts.Layout))
	}
	if opts.Namespace == nil {
		opts.Namespace = func(circuit string) string { return circuit }
	}
	preset := time.Minute
	if opts.Layout == Infuse {
		preset = 15 * time.Second
	}
	duration := func(field string, d, preset time.Duration) time.Duration {
		switch {
		case d == 0:
			return preset
		case d < time.Millisecond || d > maxDuration:
			invalid = append(invalid, fmt.Errorf("pybreakerstorage: Options.%s is %v: must be from 1ms to %v, or 0 for %v", field, d, maxDuration, preset))
		}
		return d.Round(time.Millisecond)
	}
	s := &Storage{
		client: client, layout: opts.Layout, namespace: opts.Namespace,
		resetTimeout: duration("ResetTimeout", opts.ResetTimeout, preset),
		pollInterval: duration("PollInterval", opts.PollInterval, time.Second),
	}
	if invalid != nil {
		return nil, errors.Join(invalid...)
	}
	return s, nil
}

const maxDuration = 366 * 24 * time.Hour

// Load implements infuse.Storage, in one round trip. It takes a second one to
// write down what Python has done, or what time alone has.
func (s *Storage) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	record, _, err := s.change(ctx, circuit, nil)
	return record, err
}

// Apply implements infuse.Storage, in two round trips, and in two more for each
// time that another process has written in between.
//
// Values that neither Python nor this package writes are an *infuse.RecordError,
// until a move or an override replaces them. So is a key that is no string, or no
// hash, until somebody deletes it.
func (s *Storage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := check(&c); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	turn := &s.turns[crc32.ChecksumIEEE([]byte(circuit))%uint32(len(s.turns))]
	turn.Lock()
	defer turn.Unlock()
	return s.change(ctx, circuit, &c)
}

// Watch implements infuse.Storage. It polls: Python tells nobody what it does.
func (s *Storage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	if infuse.CheckName(circuit) != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for ctx.Err() == nil {
			if record, err := s.Load(ctx, circuit); err == nil && ctx.Err() == nil {
				fn(record)
			}
			sleep(ctx, s.pollInterval/2+rand.N(s.pollInterval))
		}
	}()
	return cancel
}

func check(c *infuse.Change) error {
	var source, trial error
	if c.Number > 0 {
		source = infuse.CheckSource(c.Source)
	}
	if c.Ask != "" {
		trial = infuse.CheckSource(c.Ask)
	}
	return errors.Join(source, trial)
}

// maxRounds is how often a change is tried while others write.
const maxRounds = 100

// change makes the change, or none, on what Redis has until nothing was written
// in between.
func (s *Storage) change(ctx context.Context, name string, change *infuse.Change) (infuse.Record, infuse.Verdict, error) {
	fail := func(err error) (infuse.Record, infuse.Verdict, error) {
		if redis.HasErrorPrefix(err, "WRONGTYPE") { // of this circuit alone
			err = &infuse.RecordError{Circuit: name, Reason: "has a key of another type"}
		}
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	if err := infuse.CheckName(name); err != nil {
		return fail(err)
	}
	keys := s.layout.keys(s.namespace(name))
	for round := range maxRounds {
		f, _, err := s.run(ctx, keys)
		if err != nil {
			return fail(err)
		}
		c, err := s.merged(f)
		if err != nil {
			if change == nil || change.Move == nil && change.Override == nil {
				return fail(&infuse.RecordError{Circuit: name, Reason: err.Error()})
			}
			c = &circuit{found: f} // its values are of no use; that of opened_at is replaced, too
			c.python.openedAt = f.now / 1000
		}
		next, verdict := c.record, infuse.VerdictRefused
		if change != nil {
			next, verdict = c.record.Apply(*change, c.here)
		}
		saved, err := s.save(ctx, keys, c, next)
		if err != nil {
			return fail(err)
		}
		if saved {
			return next, verdict, nil
		}
		sleep(ctx, rand.N(time.Millisecond<<min(round, 5)))
	}
	return fail(fmt.Errorf("pybreakerstorage: circuit %q changed %d times while a change of it was made", name, maxRounds))
}

// save writes the record and Python's keys, unless they say it all. It reports
// false if another process has written first.
func (s *Storage) save(ctx context.Context, keys []string, c *circuit, next infuse.Record) (bool, error) {
	python := c.python.follow(&c.record, &next, c.now/1000)
	values := python.values(s.layout)
	text := infuse.AppendRecord(nil, next, c.here)
	for i, seen := range c.values {
		if values[i] == seen {
			values[i] = ""
		}
	}
	news := !bytes.Equal(text, infuse.AppendRecord(nil, c.stored, c.here))
	if !news && (c.found.record == "" || values == [pythonKeys]string{} && c.known == python) {
		return true, nil
	}
	args := []any{c.version}
	for _, seen := range c.values {
		args = append(args, seen)
	}
	for _, value := range values {
		args = append(args, value)
	}
	_, saved, err := s.run(ctx, keys, append(args, text, python.mirror(), c.now)...)
	return saved, err
}

// run runs the script.
func (s *Storage) run(ctx context.Context, keys []string, args ...any) (f found, saved bool, err error) {
	reply, err := swapScript.Run(ctx, s.client, keys, args...).StringSlice()
	if err != nil {
		return f, false, fmt.Errorf("pybreakerstorage: %w", err)
	}
	const parts = 11
	if len(reply) != parts {
		return f, false, fmt.Errorf("pybreakerstorage: the script replied with %d values, not with %d", len(reply), parts)
	}
	seconds, _ := strconv.ParseInt(reply[1], 10, 64)
	micros, _ := strconv.ParseInt(reply[2], 10, 64)
	f = found{
		here: time.Now().Add(s.ahead), now: seconds*1000 + micros/1000 + s.ahead.Milliseconds(),
		version: reply[3], record: reply[4], mirror: reply[5], values: [pythonKeys]string(reply[7:]),
	}
	written, _ := strconv.ParseInt(reply[6], 10, 64)
	f.written = min(written, f.now) // Redis's clock may have been set back
	return f, reply[0] == "1", nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
