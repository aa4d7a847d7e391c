package worker

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain makes the test's own program a worker, too.
func TestMain(m *testing.M) {
	Serve(map[string]Job{
		"double": Of(func(n int) (func(time.Time) (int, error), func(), error) {
			if n < 0 {
				return nil, nil, errors.New("negative")
			}
			return func(time.Time) (int, error) { return 2 * n, nil }, func() {}, nil
		}),
	})
	os.Exit(m.Run())
}

func TestAWorkerWorksInAProcessOfItsOwn(t *testing.T) {
	var all []*Worker
	for n := range 3 {
		w, err := Start("double", n)
		require.NoError(t, err)
		require.NotEqual(t, os.Getpid(), w.cmd.Process.Pid)
		all = append(all, w)
	}
	for n, w := range all {
		var doubled int
		require.NoError(t, w.Work(time.Now(), &doubled))
		require.Equal(t, 2*n, doubled)
		w.End()
		require.True(t, w.cmd.ProcessState.Success())
	}
}

func TestAWorkerThatCannotPrepareIsAnError(t *testing.T) {
	_, err := Start("double", -1)
	require.ErrorContains(t, err, "did not get ready")
	_, err = Start("no such job", 1)
	require.ErrorContains(t, err, "did not get ready")
}

func TestAWorkerEndsWithoutWorkWhereItsStarterHasEnded(t *testing.T) {
	var out strings.Builder
	worked := false
	job := Of(func(int) (func(time.Time) (int, error), func(), error) {
		return func(time.Time) (int, error) { worked = true; return 0, nil }, func() {}, nil
	})
	require.Error(t, serve(job, strings.NewReader("1\n"), &out))
	require.Equal(t, ready+"\n", out.String())
	require.False(t, worked)
}
