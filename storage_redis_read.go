package infuse

// This file reads the replies and messages of Redis: records, histories, notices, and the
// names of circuits.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse/internal/clock"
)

// knownRecord is the record of a circuit, from a reply of Redis to a script of this
// process. Messages contain no records.
type knownRecord struct {
	version string // noVersion if there is no record
	status  string // of the script
	record  Record // with times of Redis's clock
	problem error  // why the record cannot be read

	redisTime  time.Time // when Redis replied, by its clock
	receivedAt time.Time // when the reply arrived, by the clock of this process; zero: there was no reply yet
}

// now returns Redis's time, or a little less: no wait ends early.
func (k knownRecord) now(local time.Time) time.Time {
	if k.receivedAt.IsZero() {
		return local
	}
	return k.redisTime.Add(local.Sub(k.receivedAt))
}

// local returns the record as of now, with times of the clock of this process.
func (k knownRecord) local() Record {
	localNow := time.Now()
	now := k.now(localNow)
	return k.record.At(now).translated(now, localNow)
}

// translated returns a copy of the record with times of another clock, which is at to
// when the clock of the record is at from (R40).
func (r Record) translated(from, to time.Time) Record {
	r = r.clone()
	times := []*time.Time{&r.DueAt, &r.SuspectAt, &r.RetryAt, &r.DismissedAt, &r.ClosedAt}
	for i := range r.Trials {
		times = append(times, &r.Trials[i].Started, &r.Trials[i].Deadline)
	}
	r.Window.Buckets = translated(r.Window.Buckets, from, to)
	r.Override = r.Override.translated(from, to)
	for _, t := range times {
		if !t.IsZero() {
			*t = to.Add(t.Sub(from))
		}
	}
	return r
}

func (o *Override) translated(from, to time.Time) *Override {
	if o == nil || o.Until.IsZero() {
		return o
	}
	translated := *o
	translated.Until = to.Add(o.Until.Sub(from))
	return &translated
}

func translated(buckets []Bucket, from, to time.Time) []Bucket {
	buckets = slices.Clone(buckets)
	for i := range buckets {
		buckets[i].Start = to.Add(buckets[i].Start.Sub(from))
	}
	return buckets
}

// The statuses of a script that writes.
const (
	statusRefused   = "0" // it wrote nothing: the record has changed
	statusDone      = "1"
	statusDuplicate = "2" // it wrote nothing: the change is a duplicate
)

// wrongType is the beginning of Redis's error for a key of another type, and the version
// in the reply for such a key.
const wrongType = "WRONGTYPE"

const (
	maxKnown   = 10_000
	maxWindow  = 600 // bytes of a width and ten buckets
	replyParts = 7
)

// parseKnown reads the fields of a reply: v, g, now, t, n, w, r. All but now are
// untrusted (R42).
func parseKnown(fields [replyParts]string, at time.Time) knownRecord {
	k := knownRecord{version: fields[0], receivedAt: at, redisTime: at}
	if now, err := strconv.ParseInt(fields[2], 10, 64); err == nil {
		k.redisTime = time.UnixMilli(min(max(now, 0), forever))
	}
	if k.version == wrongType {
		k.problem = errors.New("is a key of another type")
		return k
	}
	var numbers [replyParts - 2]int64
	for i := range numbers {
		n, err := strconv.ParseUint(fields[i], 10, 63) // without a sign, as in the scripts
		if err != nil || n > forever {
			k.problem = fmt.Errorf("has %.20q instead of a whole number", fields[i])
			return k
		}
		numbers[i] = int64(n)
	}
	generation, now, written, count := numbers[1], numbers[2], numbers[3], numbers[4]
	if fields[6] != "" {
		// If the clock was set back, no wait is longer than at its beginning.
		k.record, k.problem = ParseRecord([]byte(fields[6]), time.UnixMilli(min(written, now)))
	}
	window, err := parseWindow(fields[5])
	k.problem = cmp.Or(k.problem, err)
	if k.problem == nil && generation != k.record.Generation { // a script that compares it would refuse every change
		k.problem = fmt.Errorf("has the generation %d, but its text has %d", generation, k.record.Generation)
	}
	if count > math.MaxInt32 {
		k.problem = fmt.Errorf("has the count %d", count)
	}
	if k.problem != nil {
		k.record = Record{}
		return k
	}
	k.record.lastNumbers, k.record.Window = nil, window
	k.record.setCount(int(count))
	return k
}

// formatWindow returns the window in the form of count.lua.
func formatWindow(w Window) string {
	if len(w.Buckets) == 0 {
		return ""
	}
	return string(formatBuckets(strconv.AppendInt(nil, w.Width.Milliseconds(), 10), w.Buckets))
}

func formatBuckets(text []byte, buckets []Bucket) []byte {
	for _, b := range buckets {
		text = fmt.Appendf(text, ";%d,%d,%d", b.Start.UnixMilli(), b.Calls, b.Failures)
	}
	return text
}

// parseWindow reads the form of formatWindow.
func parseWindow(text string) (w Window, err error) {
	if text == "" {
		return w, nil
	}
	problem := errors.New("has an impossible window")
	parts := strings.Split(text, ";")
	width, err := strconv.ParseInt(parts[0], 10, 64)
	if err != nil || width < 1 || width > maxTimeout.Milliseconds() || len(text) > maxWindow || len(parts) > 1+windowBuckets {
		return w, problem
	}
	w.Width = time.Duration(width) * time.Millisecond
	for _, part := range parts[1:] {
		var n [3]uint64 // start, calls, failures
		for i := range n {
			number, rest, more := strings.Cut(part, ",")
			if n[i], err = strconv.ParseUint(number, 10, 63); err != nil || more != (i < 2) {
				return w, problem
			}
			part = rest
		}
		if n[0] > forever || n[2] > n[1] || n[1] > unlimited {
			return w, problem
		}
		w.Buckets = append(w.Buckets, Bucket{time.UnixMilli(int64(n[0])), int(n[1]), int(n[2])})
	}
	return w, nil
}

// formatNotice returns the message of a notice.
func formatNotice(n notice) string {
	switch n.kind {
	case noticeSuspect:
		return fmt.Sprintf("suspect %d", n.generation)
	case noticeDismissed:
		return fmt.Sprintf("dismissed %d %d", n.generation, n.suspicion)
	}
	return fmt.Sprintf("changed %d", n.generation)
}

// parseNotice reads a message, which is untrusted (R42).
func parseNotice(message string) notice {
	word, numbers, _ := strings.Cut(message, " ")
	first, second, _ := strings.Cut(numbers, " ")
	number := func(text string) int64 {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil || n > forever {
			return 0
		}
		return int64(n)
	}
	n := notice{generation: number(first), suspicion: number(second)}
	switch {
	case word == "suspect" && n.generation > 0:
		n.kind = noticeSuspect
	case word == "dismissed" && n.generation > 0 && n.suspicion > 0:
		n.kind = noticeDismissed
	}
	return n
}

// order returns the version as a number.
func (k knownRecord) order() int64 {
	n, _ := strconv.ParseInt(k.version, 10, 64)
	return n
}

// quiet reports whether the record is not expected to change soon.
func (k knownRecord) quiet() bool {
	return !k.record.affectsCalls()
}

// urgent reports whether a process would restore the record if Redis lost it (R39), and
// so must detect the loss.
func (k knownRecord) urgent() bool {
	now := k.now(time.Now())
	return k.record.at(now).stillBlocks(now)
}

func (k knownRecord) err(circuit string) error {
	if k.problem == nil {
		return nil
	}
	return &RecordError{circuit, k.problem.Error()}
}

// roundedUp returns a time in whole milliseconds, for scripts: the zero time is never.
func roundedUp(t time.Time) int64 {
	if t.IsZero() {
		return forever
	}
	return t.Add(time.Millisecond - 1).UnixMilli()
}

// knownRecords has the last records from Redis, by key. They may be out of date: Redis
// refuses a change that was made from an old record.
type knownRecords struct {
	mu  sync.Mutex
	all map[string]keptRecord
}

// keptRecord is a small form of knownRecord: most circuits have no record in Redis.
type keptRecord struct {
	record *knownRecord  // nil: there was none
	ahead  time.Duration // then: Redis's clock less the clock of this process
}

// epoch is the time of Redis at which ahead is zero, when the clock of this process is
// zero.
var epoch = time.UnixMilli(0)

func (k knownRecord) kept() keptRecord {
	if k.version != noVersion || !k.record.isNew() {
		whole := k
		return keptRecord{record: &whole}
	}
	return keptRecord{ahead: k.now(time.Now()).Sub(epoch) - clock.Now()}
}

func (k keptRecord) known() knownRecord {
	if k.record != nil {
		return *k.record
	}
	now := time.Now()
	return knownRecord{version: noVersion, receivedAt: now, redisTime: epoch.Add(k.ahead + clock.Now())}
}

// noVersion is the version if there is no record.
const noVersion = "0"

func (s *knownRecords) get(key string) knownRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.all[key]; ok {
		return k.known()
	}
	return knownRecord{version: noVersion}
}

func (s *knownRecords) put(key string, k knownRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.problem != nil {
		delete(s.all, key)
		return
	}
	if s.all == nil {
		s.all = make(map[string]keptRecord)
	}
	if _, ok := s.all[key]; !ok && len(s.all) >= maxKnown {
		for any := range s.all {
			delete(s.all, any)
			break
		}
	}
	s.all[key] = k.kept()
}

// waitsLess reports whether r has shorter waits than the other record, by more than the
// delay of a message: then Redis's clock was set back (R40).
func (r Record) waitsLess(than Record) bool {
	less := func(a, b time.Time) bool { return b.Sub(a) > time.Second }
	for _, t := range than.Trials {
		if i := r.trial(t.ID); i < 0 || less(r.Trials[i].Deadline, t.Deadline) {
			return true
		}
	}
	return less(r.DueAt, than.DueAt) || less(r.RetryAt, than.RetryAt) || less(r.SuspectAt, than.SuspectAt) || less(r.DismissedAt, than.DismissedAt)
}

func (r Record) withoutNumbers() Record {
	r.lastNumbers = nil
	return r
}

// events returns the readable events of a history, with times of the clock of this
// process.
func (k knownRecord) events(texts []string) (all []Event) {
	localNow := time.Now()
	now := k.now(localNow)
	for _, text := range texts {
		e, err := parseEvent(text)
		if err != nil || len(all) == MaxHistory {
			continue
		}
		e.At = localNow.Add(e.At.Sub(now))
		e.Override = e.Override.translated(now, localNow)
		all = append(all, e)
	}
	return all
}

// redisKey returns the key of the hash of a circuit, which is the name of its channel,
// too. url.QueryEscape leaves nothing in a name that could end the hash tag, and gives
// no two names the same key.
func redisKey(prefix, circuit string) string {
	return prefix + "{" + url.QueryEscape(circuit) + "}"
}

// redisCircuit returns the circuit of a key; false if it is no key of redisKey.
func redisCircuit(prefix, key string) (circuit string, ok bool) {
	circuit, err := url.QueryUnescape(strings.TrimSuffix(strings.TrimPrefix(key, prefix+"{"), "}"))
	return circuit, err == nil && redisKey(prefix, circuit) == key && CheckName(circuit) == nil
}

// scanner is a client of one server, as listing needs it.
type scanner interface {
	Scan(ctx context.Context, cursor uint64, match string, count int64) *redis.ScanCmd
}

// scanners returns the clients that together reach all keys: those of all masters of a
// Cluster, or else the client itself.
func scanners(ctx context.Context, client redis.UniversalClient) (all []scanner, err error) {
	switch client := client.(type) {
	case interface {
		ForEachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error
	}:
		var mu sync.Mutex
		err = client.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, c)
			return nil
		})
	case scanner:
		all = append(all, client)
	default:
		err = fmt.Errorf("infuse: redis: a %T cannot list keys", client)
	}
	return all, err
}

// scanCircuits yields the circuits that have a record on one server, or one error. It
// returns false when there is nothing more to yield.
func scanCircuits(ctx context.Context, client scanner, prefix string, yield func(string, error) bool) (more bool) {
	match := globEscape(prefix+"{") + "*}"
	for cursor := uint64(0); ; {
		keys, next, err := client.Scan(ctx, cursor, match, 1000).Result()
		if err != nil {
			yield("", fmt.Errorf("infuse: redis: %w", err))
			return false
		}
		for _, key := range keys {
			if circuit, ok := redisCircuit(prefix, key); ok && !yield(circuit, nil) {
				return false
			}
		}
		if cursor = next; cursor == 0 {
			return true
		}
	}
}

// globEscape returns a pattern of Redis that matches s only.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(s)
}
