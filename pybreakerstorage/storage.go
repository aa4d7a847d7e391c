package pybreakerstorage

// This file contains the Storage, and how it reads and writes Redis.

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

// Options are the settings of a Storage. The zero value uses the keys of pybreaker, and
// the names of circuits as namespaces.
type Options struct {
	// Layout is the layout of the keys. Default Pybreaker.
	Layout Layout

	// Namespace returns the namespace of a circuit in the Python services. Default:
	// the name of the circuit. It must be a pure function. Circuits with the same
	// namespace are the same circuit.
	Namespace func(circuit string) string

	// ResetTimeout is the reset_timeout of the Python services: how long a circuit
	// that Python has opened stays open for Go. Default 60 s for Pybreaker, 15 s for
	// Infuse. A circuit that Go has opened stays open for Config.ResetTimeout.
	ResetTimeout time.Duration

	// PollInterval is how often a watched circuit is read, ± 50 %. Default 1 s.
	PollInterval time.Duration
}

// Storage is an infuse.Storage with the keys of pybreaker or of Infuse for Python. It
// starts one goroutine for each watch, which ends when the watch is stopped. It does not
// close the client.
//
// See the package documentation for its limitations.
type Storage struct {
	client       redis.Scripter
	layout       Layout
	namespace    func(string) string
	resetTimeout time.Duration
	pollInterval time.Duration

	turns [64]sync.Mutex // by name: changes of one process do not conflict in Redis
	ahead time.Duration  // added to all clocks, by tests
}

var _ infuse.Storage = (*Storage)(nil)

//go:embed swap.lua
var swapSource string

var swapScript = redis.NewScript(swapSource)

// New returns a Storage that uses the client, any client of go-redis v9. It does no I/O.
// If the client is a Cluster client, namespaces need a hash tag: "{orders}".
func New(client redis.Scripter, opts Options) (*Storage, error) {
	var invalid []error
	if client == nil {
		invalid = append(invalid, errors.New("pybreakerstorage: client is nil"))
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

// Load implements infuse.Storage. It takes one round trip, and a second one to write
// changes by Python or by time.
func (s *Storage) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	record, _, err := s.change(ctx, circuit, nil)
	return record, err
}

// Apply implements infuse.Storage. It takes two round trips, and two more for each
// conflicting write of another process.
//
// If a value is invalid, Apply returns an *infuse.RecordError until the state is set
// manually or an override replaces the record. If a key has the wrong type, it returns an
// *infuse.RecordError until the key is deleted.
func (s *Storage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := check(&c); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	turn := &s.turns[crc32.ChecksumIEEE([]byte(circuit))%uint32(len(s.turns))]
	turn.Lock()
	defer turn.Unlock()
	return s.change(ctx, circuit, &c)
}

// Watch implements infuse.Storage. It polls, because Python sends no notifications.
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
	if c.RequestTrial != "" {
		trial = infuse.CheckSource(c.RequestTrial)
	}
	return errors.Join(source, trial)
}

// maxRounds is the number of attempts of a change with conflicting writes.
const maxRounds = 100

// change applies the change, or nil, to the values in Redis. It repeats that after
// conflicting writes.
func (s *Storage) change(ctx context.Context, name string, change *infuse.Change) (infuse.Record, infuse.Verdict, error) {
	fail := func(err error) (infuse.Record, infuse.Verdict, error) {
		if redis.HasErrorPrefix(err, "WRONGTYPE") { // an error of this circuit only
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
			if change == nil || change.Manual == nil && change.Override == nil {
				return fail(&infuse.RecordError{Circuit: name, Reason: err.Error()})
			}
			c = &circuit{found: f} // the values are invalid; replace opened_at as well
			c.python.openedAt = f.now / 1000
		}
		next, verdict := c.record, infuse.VerdictRefused
		if change != nil {
			next, verdict = c.record.Apply(*change, c.readAt)
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
	return fail(fmt.Errorf("pybreakerstorage: circuit %q: gave up after %d conflicting updates", name, maxRounds))
}

// save writes the record and Python's keys, unless they are up to date. It returns false
// after a conflicting write of another process.
func (s *Storage) save(ctx context.Context, keys []string, c *circuit, next infuse.Record) (bool, error) {
	python := c.python.follow(&c.record, &next, c.now/1000)
	values := python.values(s.layout)
	text := infuse.AppendRecord(nil, next, c.readAt)
	for i, seen := range c.values {
		if values[i] == seen {
			values[i] = ""
		}
	}
	changed := !bytes.Equal(text, infuse.AppendRecord(nil, c.stored, c.readAt))
	if !changed && (c.found.record == "" || values == [pythonKeys]string{} && c.known == python) {
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
		readAt: time.Now().Add(s.ahead), now: seconds*1000 + micros/1000 + s.ahead.Milliseconds(),
		version: reply[3], record: reply[4], mirror: reply[5], values: [pythonKeys]string(reply[7:]),
	}
	written, _ := strconv.ParseInt(reply[6], 10, 64)
	f.written = min(written, f.now) // the clock of Redis may have been set back
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
