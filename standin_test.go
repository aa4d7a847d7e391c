package infuse

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The slot of a trial that was ignored stayed taken for TrialTimeout, while the
// storage was unavailable.
func TestAnIgnoredTrialOfADetachedProcessFreesItsSlot(t *testing.T) {
	s, err := newSettings(Config{ResetTimeout: time.Second, TrialTimeout: time.Hour})
	require.NoError(t, err)
	r := newReplica(s, "a", true, 1)
	open, _ := Record{}.Apply(Change{Move: &Move{StateOpen}, Limits: s.limits}, noon)
	r.hasRead(open, 0, noon)
	r.lost(errors.New("no route to Redis"), noon)
	for range 2 {
		a, d := r.asked(noon.Add(time.Minute))
		require.Equal(t, admits, d)
		require.NotEmpty(t, a.trial)
		r.ended(&a, result{outcome: OutcomeIgnored}, noon.Add(time.Minute))
	}
}
