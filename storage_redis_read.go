package infuse

// This file has what RedisStorage reads: known records, the history of a circuit, and
// the names of all circuits.

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

// knownRecord is a circuit's record as Redis replied it to a script of this
// process. It never comes from a message.
type knownRecord struct {
	version string // none but "0" where there is no record
	status  string // of the script that told it
	record  Record // its times are on Redis's clock
	problem error  // why it cannot be read

	told time.Time // when, on Redis's clock
	at   time.Time // and on this process's: when it was here. Zero: nothing was told yet
}

// now returns Redis's time, or somewhat less: nothing is ever due early.
func (k knownRecord) now(local time.Time) time.Time {
	if k.at.IsZero() {
		return local
	}
	return k.told.Add(local.Sub(k.at))
}

// local returns the record as it is now, with times on this process's clock.
func (k knownRecord) local() Record {
	here := time.Now()
	now := k.now(here)
	return k.record.At(now).translated(now, here)
}

// translated returns a copy of the record for another clock, which says there
// while the record's own says here.
// R40.
func (r Record) translated(here, there time.Time) Record {
	r = r.clone()
	times := []*time.Time{&r.DueAt, &r.SuspectAt, &r.RetryAt, &r.DismissedAt, &r.ClosedAt}
	for i := range r.Trials {
		times = append(times, &r.Trials[i].Started, &r.Trials[i].Deadline)
	}
	r.Window.Buckets = translated(r.Window.Buckets, here, there)
	r.Override = r.Override.translated(here, there)
	for _, t := range times {
		if !t.IsZero() {
			*t = there.Add(t.Sub(here))
		}
	}
	return r
}

func (o *Override) translated(here, there time.Time) *Override {
	if o == nil || o.Until.IsZero() {
		return o
	}
	translated := *o
	translated.Until = there.Add(o.Until.Sub(here))
	return &translated
}

func translated(buckets []Bucket, here, there time.Time) []Bucket {
	buckets = slices.Clone(buckets)
	for i := range buckets {
		buckets[i].Start = there.Add(buckets[i].Start.Sub(here))
	}
	return buckets
}

// What a script did.
const (
	statusRefused = "0" // the record was not as it was seen
	statusDone    = "1"
	statusHeard   = "2" // nothing: the source's number was heard before
)

// wrongType begins Redis's error for a key that is not a hash. It is the version
// of such a key.
const wrongType = "WRONGTYPE"

const (
	maxKnown   = 10_000
	maxWindow  = 600 // bytes of a width and ten buckets
	replyParts = 7
)

// parseKnown reads the fields of a reply: v, g, now, t, n, w, r. All but now
// may be a stranger's.
func parseKnown(fields [replyParts]string, at time.Time) knownRecord {
	k := knownRecord{version: fields[0], at: at, told: at}
	if now, err := strconv.ParseInt(fields[2], 10, 64); err == nil {
		k.told = time.UnixMilli(min(max(now, 0), forever))
	}
	if k.version == wrongType {
		k.problem = errors.New("is a key of another type")
		return k
	}
	var numbers [replyParts - 2]int64
	for i := range numbers {
		n, err := strconv.ParseUint(fields[i], 10, 63) // no sign: the scripts read none
		if err != nil || n > forever {
			k.problem = fmt.Errorf("has %.20q instead of a whole number", fields[i])
			return k
		}
		numbers[i] = int64(n)
	}
	generation, now, written, count := numbers[1], numbers[2], numbers[3], numbers[4]
	if fields[6] != "" {
		// A clock that was set back makes no wait longer than when it began.
		k.record, k.problem = ParseRecord([]byte(fields[6]), time.UnixMilli(min(written, now)))
	}
	window, err := parseWindow(fields[5])
	k.problem = cmp.Or(k.problem, err)
	if k.problem == nil && generation != k.record.Generation { // no script that compares it would ever agree
		k.problem = fmt.Errorf("has the generation %d beside a record of %d", generation, k.record.Generation)
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

// formatWindow returns the window as count.lua has it.
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

// parseWindow reads what formatWindow or count.lua has written.
func parseWindow(text string) (w Window, err error) {
	if text == "" {
		return w, nil
	}
	problem := errors.New("has a window that cannot be")
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

// parseNotice reads a message, which may be anybody's.
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

// order is the version as a number.
func (k knownRecord) order() int64 {
	n, _ := strconv.ParseInt(k.version, 10, 64)
	return n
}

// quiet reports whether the record is not expected to change soon.
func (k knownRecord) quiet() bool {
	return !k.record.affectsCalls()
}

// urgent reports whether the record is restored if Redis loses it: that has to be
// noticed.
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

// roundedUp is a time in whole milliseconds as the scripts have it: zero is never.
func roundedUp(t time.Time) int64 {
	if t.IsZero() {
		return forever
	}
	return t.Add(time.Millisecond - 1).UnixMilli()
}

// knownRecords are the records that Redis told of last, by key. They may be
// old: Redis decides whether a change that was made of one is right.
type knownRecords struct {
	mu  sync.Mutex
	all map[string]keptRecord
}

// keptRecord is a knownRecord in little room: most circuits have none in Redis.
type keptRecord struct {
	record *knownRecord  // nil: there was none
	ahead  time.Duration // then: Redis's clock, of that of this process
}

// epoch is when the clock that ahead counts from was zero.
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
	return knownRecord{version: noVersion, at: now, told: epoch.Add(k.ahead + clock.Now())}
}

// noVersion is the version where there is no record.
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

// waitsLess reports that the sender knows of shorter waits than the record has,
// by more than what a message is on its way: Redis's clock was set back.
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

// events returns the events that can be read of a history, with times on the clock of
// this process.
func (k knownRecord) events(texts []string) (all []Event) {
	here := time.Now()
	now := k.now(here)
	for _, text := range texts {
		e, err := parseEvent(text)
		if err != nil || len(all) == MaxHistory {
			continue
		}
		e.At = here.Add(e.At.Sub(now))
		e.Override = e.Override.translated(now, here)
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
