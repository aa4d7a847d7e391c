package infuse

import "reflect"

// IsFast reports whether a success takes neither a lock nor a look at the clock.
func IsFast(b *Breaker) bool { return b.view.Load().fast }

// RejectsAtOnce reports whether a rejection is a load and a branch.
func RejectsAtOnce(b *Breaker) bool { return b.view.Load().rejects != nil }

// IsTrialOfTheFleet reports whether the permit is for a trial that the storage
// has granted.
func IsTrialOfTheFleet(p Permit) (yes bool) {
	a := p.ticket.admission
	p.ticket.breaker.inspect(func(r *replica) { yes = a.trial != "" && r.lease(a.trial) != nil })
	return yes
}

// IsLinked reports whether the link of a storage is kept for others.
func IsLinked(s Storage) bool {
	links.Lock()
	defer links.Unlock()
	for kept := range links.of {
		itself := reflect.ValueOf(kept)
		if itself.Type() == reflect.TypeOf(s) && (!itself.Equal(itself) || kept == s) {
			return true
		}
	}
	return false
}

// FailuresOf returns the consecutive failures of the local circuit or, if that is
// more, of the shared one.
func FailuresOf(b *Breaker) int {
	s := b.Stats()
	return max(s.Local.Failures, s.Shared.Failures)
}

// SharedIsUntouched reports whether nobody has written to what healthy circuits share.
func SharedIsUntouched() bool {
	return reflect.DeepEqual(*noEpisode, episode{}) && reflect.DeepEqual(closed, Record{})
}
