package pybreakerstorage

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A success of Python's that came long after the opening closed the circuit: no
// Go process had looked since.
func TestASuccessOfPythonAfterTheOpeningDoesNotCloseIt(t *testing.T) {
	m := newMixed(t)
	suspect(m)
	m.wait(30 * time.Second) // the suspicion was over 20 seconds ago
	m.set("fail_counter", 0)
	require.Equal(t, infuse.StateOpen, m.load(0).State)
}

// Nor does Python hear of the opening from the process that tells of a failure
// or checks, as long as none reads.
func TestPythonHearsOfAnOpeningFromAnyChange(t *testing.T) {
	for name, c := range map[string]infuse.Change{
		"a failure": {Calls: oneFailure.Calls}, "a check": {},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMixed(t)
			c.Seen, c.Limits = suspect(m), suspecting
			m.wait(11 * time.Second)
			m.apply(c)
			require.Equal(t, "open", m.value("state"))
		})
	}
}
