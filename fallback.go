package infuse

import (
	"context"
	"errors"
	"time"
)

// A breaker whose storage is away goes on by itself: the same state machine on
// its own record. What the storage is to hear later is kept. When the storage
// is back it hears that first, and then its record counts again.

// maxUnsent bounds what is kept for the storage: one report, and the ends of
// trials that the storage knows of.
const maxUnsent = 16

// send makes a change that must not be lost. The storage may not answer: then
// the change counts for this process, and is kept for the storage.
func (b *Breaker) send(ctx context.Context, c Change) {
	a := b.ask(ctx, c)
	b.mu.Lock()
	switch {
	case a.err == nil:
		b.adoptLocked(a.record)
	case a.err == errBusy:
		b.keep(c) // its turn comes: see sendReport
	default:
		b.keep(c)
		if b.decidesItself() {
			b.applyOwn(c)
		}
	}
	b.mu.Unlock()
	if a.err != nil {
		b.failed(a.err)
	}
}

// exchange makes a change, in the storage or, while that is away, on the
// breaker's own record. The caller is to tell the listeners.
func (b *Breaker) exchange(ctx context.Context, c Change) (Record, Verdict) {
	if !b.isDetached() {
		a := b.ask(ctx, c)
		switch a.err {
		case nil:
			b.mu.Lock()
			b.adoptLocked(a.record)
			b.mu.Unlock()
			return a.record, a.verdict
		case errBusy:
			return b.ownRecord(), VerdictRefused
		}
		b.failed(a.err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.decidesItself() {
		return b.record, VerdictRefused
	}
	return b.applyOwn(c)
}

func (b *Breaker) ownRecord() Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.record
}

// decidesItself reports whether the breaker's own record counts while the
// storage is away. b.mu is held.
func (b *Breaker) decidesItself() bool {
	return b.stopped || b.config.Fallback == FallbackLocal
}

func (b *Breaker) keep(c Change) {
	if len(b.unsent) < maxUnsent {
		b.unsent = append(b.unsent, c)
	}
}

// applyOwn makes the change on the breaker's own record. b.mu is held.
func (b *Breaker) applyOwn(c Change) (Record, Verdict) {
	before := b.record
	if c.Kind == ChangeReport && before.Generation > b.known && c.Seen.Generation == b.known {
		c.Seen.Generation = before.Generation
	}
	record, verdict := before.Apply(c, time.Now())
	if verdict == VerdictRefused {
		return record, verdict
	}
	b.record = record
	switch {
	case record.State == StateOpen && before.State == StateClosed:
		b.supersede(row{failures: b.config.FailMax})
	case record.State == StateClosed && before.State != StateClosed:
		b.supersede(row{cleared: true})
		b.cause = nil
	}
	b.refresh()
	return record, verdict
}

// supersede replaces what the storage is yet to hear of outcomes by what they
// came to.
func (b *Breaker) supersede(r row) {
	b.pending = r
	kept := b.unsent[:0]
	for _, c := range b.unsent {
		if c.Kind != ChangeReport {
			kept = append(kept, c)
		}
	}
	b.unsent = kept
}

// ask has the storage make the change, within StorageTimeout. A trial that is
// granted too late is given back.
func (b *Breaker) ask(ctx context.Context, c Change) answer {
	if b.local() { // apart from askAside, whose closures would put the change on the heap
		record, verdict, err := b.storage.Apply(ctx, b.name, c)
		return answer{record, verdict, err}
	}
	return b.askAside(ctx, c)
}

func (b *Breaker) askAside(ctx context.Context, c Change) answer {
	return b.request(ctx, func(ctx context.Context) answer {
		record, verdict, err := b.storage.Apply(ctx, b.name, c)
		return answer{record, verdict, err}
	}, func(a answer) {
		if c.Kind == ChangeAcquire && a.err == nil && a.verdict != VerdictRefused {
			back := Change{
				Kind: ChangeSettle, Token: c.Token, Outcome: OutcomeIgnored, Limits: c.Limits,
				Seen: a.record,
			}
			_, _, _ = b.storage.Apply(context.WithoutCancel(ctx), b.name, back)
		}
	})
}

// load reads the record from the storage, within StorageTimeout.
func (b *Breaker) load(ctx context.Context) answer {
	return b.request(ctx, func(ctx context.Context) answer {
		record, err := b.storage.Load(ctx, b.name)
		return answer{record: record, err: err}
	}, nil)
}

func (b *Breaker) request(ctx context.Context, request func(context.Context) answer, late func(answer)) answer {
	if b.local() {
		return request(ctx)
	}
	return b.guard.ask(ctx, b.settings().StorageTimeout, request, late)
}

// local reports whether the storage is this process's memory: it answers at
// once, and never fails.
func (b *Breaker) local() bool {
	_, ok := b.storage.(*MemoryStorage)
	return ok
}

// failed tells the guard whose trouble it is that the storage has failed.
func (b *Breaker) failed(err error) {
	switch {
	case err == errBusy:
	case isUnreadable(err):
		b.isolate(err)
	default:
		b.guard.fail(b, err)
	}
}

func isUnreadable(err error) bool {
	var unreadable *RecordError
	return errors.As(err, &unreadable)
}

// isolate leaves the breaker to a guard of its own: the storage answers others.
func (b *Breaker) isolate(err error) {
	b.mu.Lock()
	if b.ownGuard == nil {
		b.ownGuard = newGuard()
		if !b.stopped {
			b.ownGuard.join(b)
		}
	}
	own := b.ownGuard
	b.mu.Unlock()
	own.fail(b, err)
}

func (b *Breaker) isIsolated() bool {
	b.mu.Lock()
	own := b.ownGuard
	b.mu.Unlock()
	return own != nil && own.isAway()
}

// detach begins a spell on the breaker's own.
func (b *Breaker) detach(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.detached() {
		return
	}
	b.away, b.awaySince = err, time.Now()
	b.events.add(storageError(b, err))
	if b.pending != (row{}) && b.decidesItself() {
		b.applyOwn(b.reportOf(b.pending))
	}
	b.refresh()
}

// probe reports whether the storage answers; what it says is another matter.
func (b *Breaker) probe() error {
	err := b.load(context.Background()).err
	if isUnreadable(err) {
		return nil
	}
	return err
}

// reattach ends it, if the storage answers: it hears what it has missed, and
// its record counts again. The guard that knocks is told whether the trouble
// that it stands for is over.
func (b *Breaker) reattach(g *guard) error {
	b.reattaching.Lock()
	defer b.reattaching.Unlock()
	for range 2 * maxUnsent { // more than it can ever take, but for a storage that makes no sense
		b.mu.Lock()
		if b.away == nil || b.stopped {
			b.mu.Unlock()
			return nil
		}
		c := b.nextUnsent()
		b.mu.Unlock()
		a := b.ask(context.Background(), c)
		if isUnreadable(a.err) && g == b.guard {
			b.isolate(a.err)
			return nil
		}
		if a.err != nil {
			return a.err
		}
		if b.attach(a.record, c) {
			go b.tell() // a slow listener must not hold back the other circuits
			return nil
		}
	}
	return errors.New("infuse: the storage answers with older records again and again")
}

// nextUnsent returns the next change that the storage is to hear: of the kind
// ChangeSync when it has heard all. b.mu is held.
func (b *Breaker) nextUnsent() Change {
	if len(b.unsent) == 0 && b.pending != (row{}) {
		b.keep(b.reportOf(b.pending))
		b.pending = row{}
	}
	if len(b.unsent) == 0 {
		return b.change(ChangeSync)
	}
	c := b.unsent[0]
	if c.Kind == ChangeReport && b.record.State != StateClosed {
		// What this process has opened opens by today's settings, and stays open
		// for as long as it has left here.
		c.Limits, c.Failures = b.config.limits(), b.config.FailMax
		c.Limits.ResetTimeout = max(time.Until(b.record.DueAt), time.Millisecond)
	}
	return c
}

// attach notes that the storage has heard the change and, if it was the last,
// makes its record the breaker's own.
func (b *Breaker) attach(r Record, told Change) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.unsent) > 0 && b.unsent[0].Token == told.Token {
		b.unsent = b.unsent[1:]
	}
	if len(b.unsent) > 0 || b.pending != (row{}) || b.knowsBetter(r) {
		return false
	}
	if b.away == nil || b.stopped {
		return true
	}
	b.away = nil
	b.replace(r)
	b.events.add(storageError(b, nil))
	return true
}
