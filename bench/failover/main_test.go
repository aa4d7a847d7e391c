package main

import (
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

func TestMain(m *testing.M) {
	logging.Disable()
	redistest.Run(m)
}

// No healthy call is rejected because a master is lost, and none waits for longer
// than StorageTimeout allows.
func TestFailover(t *testing.T) {
	redistest.Require(t)
	s := setups()[0](t)
	c, err := measure(s, 6*time.Second)
	require.NoError(t, err)
	require.Zero(t, c.rejected)
	require.Positive(t, c.calls)
	require.Less(t, len(c.waits), 4*processes)
	require.Positive(t, slices.Max(c.local))
	require.NotEmpty(t, c.reason)
	require.Contains(t, c.row(s.name), s.name)
}
