package infuse_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A record that comes out of Redis, or by Pub/Sub, may be anybody's.

// longestWait is the most that a stranger's record can make a process wait.
const longestWait = 366 * 24 * time.Hour

func FuzzDecodeRecord(f *testing.F) {
	for _, line := range goodLines {
		f.Add(line)
	}
	for _, line := range badLines {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		now := time.Now()
		record, err := infuse.DecodeRecord(line, now)
		if err != nil {
			return
		}
		requireBounds(t, record, now)
		again, err := infuse.DecodeRecord(infuse.EncodeRecord(record, now), now)
		require.NoError(t, err)
		require.Equal(t, record, again, "what was read can be written and read again")
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add(int64(0), "1700000000000", goodLines[0], "")
	f.Add(int64(2), "1700000000000", goodLines[3], "a,b")
	f.Add(int64(3), "", badLines[0], ",")
	f.Add(int64(-1), "-", goodLines[0], "a")
	f.Fuzz(func(t *testing.T, verdict int64, at, line, tokens string) {
		now := time.Now()
		record, got, err := infuse.DecodeReply([]any{verdict, at, line, tokens}, now)
		if err != nil {
			return
		}
		requireBounds(t, record, now)
		require.Equal(t, verdict, int64(got))
		require.Equal(t, tokens, strings.Join(record.Tokens, ","))
	})
}

func requireBounds(t *testing.T, r infuse.Record, now time.Time) {
	t.Helper()
	require.LessOrEqual(t, r.State, infuse.StateHalfOpen)
	require.GreaterOrEqual(t, r.Generation, int64(0))
	require.GreaterOrEqual(t, r.Failures, 0)
	require.GreaterOrEqual(t, r.Successes, 0)
	require.LessOrEqual(t, len(r.Trials), 1024)
	require.False(t, r.DueAt.After(now.Add(longestWait)))
	require.Equal(t, r.State == infuse.StateOpen, !r.DueAt.IsZero())
	for _, trial := range r.Trials {
		require.False(t, trial.Deadline.Before(now))
		require.False(t, trial.Deadline.After(now.Add(longestWait)))
	}
}

var goodLines = []string{
	"1 0 0 0 0 0 -",
	"1 0 1700000000000 3 0 0 -",
	"1 1 1700000000000 5 0 60000 -",
	"1 2 1700000000000 5 1 0 a.1=30000,b.1=0",
	"1 1 1 0 0 4503599627370496 -",
	"1 2 1 0 0 0 a=4503599627370496",
}

var badLines = []string{
	"",
	" ",
	"2 0 0 0 0 0 - something new",
	"1 0 0 0 0 0",
	"1 0 0 0 0 0 - 0",
	"1 3 0 0 0 0 -",
	"1 -1 0 0 0 0 -",
	"1 0 -5 0 0 0 -",
	"1 0 0 1e3 0 0 -",
	"1 0 0 0.5 0 0 -",
	"1 0 9007199254740993 0 0 0 -",
	"1 0 99999999999999999999 0 0 0 -",
	"1 0 0 0 0 nil -",
	"1 2 1 0 0 0 a",
	"1 2 1 0 0 0 a=",
	"1 2 1 0 0 0 a=1,",
	"1 2 1 0 0 0 a=-1",
	"1 2 1 0 0 0 a=b=1",
	"1 2 1 0 0 0 " + strings.Repeat("x", 65) + "=1",
	"1 2 1 0 0 0 " + strings.TrimSuffix(strings.Repeat("a=1,", 1025), ","),
	"1 2 1 0 0 0 " + strings.Repeat("9", 1<<20),
}

func TestLinesOfTheScriptAreRead(t *testing.T) {
	now := time.Now()
	for _, line := range goodLines {
		_, err := infuse.DecodeRecord(line, now)
		assert.NoError(t, err, line)
	}
	record, err := infuse.DecodeRecord(goodLines[3], now)
	require.NoError(t, err)
	require.Equal(t, infuse.Record{
		State: infuse.StateHalfOpen, Generation: 1700000000000, Failures: 5, Successes: 1,
		Trials: []infuse.Trial{{ID: "a.1", Deadline: now.Add(30 * time.Second)}, {ID: "b.1", Deadline: now}},
	}, record)
	record, err = infuse.DecodeRecord(goodLines[4], now)
	require.NoError(t, err)
	require.Equal(t, now.Add(longestWait), record.DueAt, "not for 142,000 years")
}

func TestOtherLinesAreErrors(t *testing.T) {
	for _, line := range badLines {
		_, err := infuse.DecodeRecord(line, time.Now())
		assert.Error(t, err, "%.80q", line)
	}
	_, err := infuse.DecodeRecord(badLines[2], time.Now())
	assert.ErrorContains(t, err, "schema", "a newer version is told from garbage")
}

func TestOtherRepliesAreErrors(t *testing.T) {
	line := goodLines[0]
	for _, reply := range [][]any{
		nil,
		{},
		{int64(0), "1", line},
		{int64(0), "1", line, "", ""},
		{"0", "1", line, ""},
		{int64(3), "1", line, ""},
		{int64(-1), "1", line, ""},
		{int64(0), "1", nil, ""},
		{int64(0), "1", line, nil},
		{int64(0), "1", int64(5), ""},
	} {
		_, verdict, err := infuse.DecodeReply(reply, time.Now())
		assert.Error(t, err, fmt.Sprint(reply))
		assert.Equal(t, infuse.VerdictRefused, verdict)
	}
}

func TestTimesAreWrittenAsDurationsRoundedUp(t *testing.T) {
	now := time.Now()
	open := infuse.Record{State: infuse.StateOpen, Generation: 7, Failures: 5, DueAt: now.Add(time.Minute + time.Microsecond)}
	assert.Equal(t, "1 1 7 5 0 60001 -", infuse.EncodeRecord(open, now))
	assert.Equal(t, "1 1 7 5 0 0 -", infuse.EncodeRecord(open, now.Add(time.Hour)), "never below zero")
	halfOpen := infuse.Record{
		State: infuse.StateHalfOpen, Generation: 8, Successes: 2,
		Trials: []infuse.Trial{{ID: "a", Deadline: now.Add(time.Millisecond)}, {ID: "b", Deadline: now.Add(-time.Second)}},
	}
	assert.Equal(t, "1 2 8 0 2 0 a=1,b=0", infuse.EncodeRecord(halfOpen, now))
	assert.Len(t, slices.Collect(strings.SplitSeq(infuse.EncodeRecord(infuse.Record{}, now), " ")), 7)
}
