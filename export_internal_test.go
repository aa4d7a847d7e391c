package infuse

// IsTrialOfTheFleet reports whether the permit is for a trial that the storage
// has granted.
func IsTrialOfTheFleet(p Permit) (yes bool) {
	a := p.ticket.admission
	p.ticket.breaker.look(func(r *replica) { yes = a.trial != "" && r.lease(a.trial) != nil })
	return yes
}
