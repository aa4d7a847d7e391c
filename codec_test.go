package infuse

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestRecordsRoundTrip(t *testing.T) {
	now := time.UnixMilli(1_790_000_000_000)
	for name, r := range map[string]Record{
		"zero":   {},
		"streak": {Generation: 7, Since: 5, Opened: 3, Manual: 4, Failures: 2, By: "a", lastNumbers: []lastNumber{{"s", 1<<64 - 1}}},
		"suspect": {
			Generation: 7, Failures: 5, Threshold: 5, Score: 6, By: "a", Cause: "b",
			SuspectAt: now.Add(-time.Second), DueAt: now.Add(time.Minute),
		},
		"suspect by its rate": {Generation: 7, Rated: true, Witness: "s.1", SuspectAt: now.Add(-time.Second), DueAt: now.Add(time.Minute)},
		"dismissed":           {Generation: 9, DismissedAt: now.Add(-time.Second)},
		"open":                {State: StateOpen, Generation: 7, Since: 7, Opened: 7, SuspectAt: now, DueAt: now.Add(time.Minute), Cause: "refused"},
		"half-open": {
			State: StateHalfOpen, Generation: 8, Successes: 1, Threshold: 5, Score: 9, SuspectAt: now.Add(-time.Minute), DueAt: now.Add(-time.Second),
			Witness: "s.1", RetryAt: now.Add(time.Minute),
			Trials: []Trial{{"a", now.Add(-time.Second), now.Add(time.Second), false}, {"b", now, now, true}},
		},
	} {
		got, err := ParseRecord(AppendRecord(nil, r, now), now)
		require.NoError(t, err, name)
		require.Equal(t, r, got, name)
		later, err := ParseRecord(AppendRecord([]byte{}, r, now), now.Add(time.Hour))
		require.NoError(t, err, name)
		if !r.DueAt.IsZero() {
			require.Equal(t, r.DueAt.Add(time.Hour), later.DueAt, "%s: times are relative to the time of writing", name)
		}
	}
}

func TestLongTextsCanBeReadAgain(t *testing.T) {
	now := time.Now()
	for _, text := range []string{strings.Repeat("\xff", 999), strings.Repeat("é", 101), strings.Repeat("x", 199) + "日", "\x00<>&\u2028"} {
		got, err := ParseRecord(AppendRecord(nil, Record{By: text, Cause: text, Trials: []Trial{{ID: "a"}}}, now), now)
		require.NoError(t, err, "%.20q", text)
		require.LessOrEqual(t, len(got.Cause), maxTextLength)
	}
}

func TestSchemas(t *testing.T) {
	now := time.Now()
	got, err := ParseRecord([]byte(`{"v":9,"readable":2,"state":1,"gen":5,"left":[1],"new":{"field":true}}`), now)
	require.NoError(t, err, "a newer schema that this version can read")
	require.Equal(t, Record{State: StateOpen, Generation: 5}, got)
	_, err = ParseRecord([]byte(`{"v":9,"readable":9,"state":1,"gen":5}`), now)
	require.ErrorContains(t, err, "newer")
}

// R42.
func TestHostileRecords(t *testing.T) {
	now := time.Now()
	for _, text := range []string{
		"", "null", "[]", "1", "garbage", `{"v":2`, `{}`, `{"v":0,"readable":0}`,
		`{"v":2,"readable":2,"state":3}`, `{"v":2,"readable":2,"state":-1}`, `{"v":2,"readable":2,"state":256}`,
		`{"v":2,"readable":2,"gen":-1}`, `{"v":2,"readable":2,"gen":9e18}`, `{"v":2,"readable":2,"gen":4503599627370495}`,
		`{"v":2,"readable":2,"failures":-1}`, `{"v":2,"readable":2,"failures":4294967296}`, `{"v":2,"readable":2,"score":-5}`, `{"v":2,"readable":2,"threshold":-1}`, `{"v":2,"readable":2,"witness":"a b"}`,
		`{"v":2,"readable":2,"trials":[{"id":"","left":1}]}`, `{"v":2,"readable":2,"trials":[{"id":"a b","left":1}]}`,
		`{"v":2,"readable":2,"heard":[{"s":"a:b","n":1}]}`, `{"v":2,"readable":2,"heard":[{"s":"a","n":-1}]}`,
		`{"v":2,"readable":2,"cause":"` + strings.Repeat("x", 201) + `"}`,
		`{"v":2,"readable":2,"trials":[` + strings.Repeat(`{"id":"a","left":1},`, 1024) + `{"id":"a","left":1}]}`,
		strings.Repeat(" ", maxRecordLength+1), strings.Repeat("[", maxRecordLength),
	} {
		_, err := ParseRecord([]byte(text), now)
		require.Error(t, err, "%.80s", text)
	}
}

func requireBounds(t *testing.T, r Record, now time.Time) {
	t.Helper()
	require.LessOrEqual(t, r.State, StateHalfOpen)
	require.GreaterOrEqual(t, min(r.Generation, r.Since, r.Opened, r.Manual), int64(0))
	require.GreaterOrEqual(t, min(r.Failures, r.Successes, r.Threshold, r.Score), 0)
	require.LessOrEqual(t, len(r.Trials), maxMaxTrials)
	for _, until := range append([]time.Time{r.DueAt, r.RetryAt, r.SuspectAt, r.DismissedAt, r.ClosedAt}, deadlines(r.Trials)...) {
		require.False(t, until.After(now.Add(maxTimeout)))
	}
}

func FuzzParseRecord(f *testing.F) {
	now := time.UnixMilli(1_790_000_000_000)
	for _, r := range []Record{
		{}, {Failures: 1}, {State: StateOpen, DueAt: now.Add(time.Hour)},
		{State: StateHalfOpen, Trials: []Trial{{"a", now, now, true}}, lastNumbers: []lastNumber{{"s", 5}}},
		{Threshold: 5, SuspectAt: now, Score: 5, DismissedAt: now},
	} {
		f.Add(AppendRecord(nil, r, now))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseRecord(text, now)
		if err != nil {
			return
		}
		requireBounds(t, r, now)
		again, err := ParseRecord(AppendRecord(nil, r, now), now)
		require.NoError(t, err)
		require.Equal(t, r, again, "a record that was read can be written and read again")
	})
}

func TestInvalidEventsAreRejected(t *testing.T) {
	long := make([]byte, 1000)
	for i := range long {
		long[i] = 'x'
	}
	e, err := parseEvent(`{"at":1,"from":0,"to":0,"override":{"state":77,"by":"` + string(long) + `","left":-9223372036854775808}}`)
	if err == nil {
		t.Fatalf("override of state %v by %d bytes until %v", e.Override.State, len(e.Override.By), e.Override.Until)
	}
}

// R42.
func TestACauseContainsNoSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain",
		"GET https://a.net/t?$filter=name eq 'ann'&sig=TOPSECRET: 500": "GET https://a.net/t?…",
		"redis://:secret@h": "redis://h",
		"two\nlines\x00":    "two lines ",
	} {
		require.Equal(t, want, presentable(text, 200), "%q", text)
	}
	require.Len(t, presentable(strings.Repeat("é", 500), 200), 200)
	require.True(t, utf8.ValidString(presentable(strings.Repeat("\xff日", 500), 199)))
}

// errors.Is finds the root of a cause; records do not contain its URL.
// R42.
func TestACauseKeepsItsRoot(t *testing.T) {
	err := &url.Error{Op: "Get", URL: "https://h/?token=s", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	c := causeOf(err)
	require.ErrorIs(t, c, syscall.ECONNREFUSED)
	require.Equal(t, "connection refused", textOf(c))
	require.NotContains(t, c.Error(), "token")
	require.Equal(t, errFailedTest, causeOf(errFailedTest))
	require.Equal(t, keptCause{}, keepCause(nil))
	require.Empty(t, textOf(nil))
	wrapped := causeOf(fmt.Errorf("reading: %w", &url.Error{Op: "Get", URL: "x", Err: errors.New("inner")}))
	require.Equal(t, "inner", textOf(wrapped))
}

var errFailedTest = errors.New("failed")

func FuzzPresentable(f *testing.F) {
	f.Add(`Get "https://u:p@h:8/p/q?token=s#f": EOF`, 20)
	f.Fuzz(func(t *testing.T, text string, most int) {
		if most < 0 || most > 1000 {
			return
		}
		got := presentable(text, most)
		if len(got) > most || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00") {
			t.Fatalf("%q", got)
		}
	})
}
