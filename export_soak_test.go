package infuse

// Trial returns the ID of the trial that the permit is for, if it is for one,
// and whether the storage has granted it: while that is away, a process has
// trials of its own.
func (p Permit) Trial() (id string, granted bool) {
	b := p.ticket.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	return p.ticket.admission.trial, p.ticket.admission.generation == b.known && !b.detached()
}
