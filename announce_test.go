package infuse

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A process that does not know a suspicion need not read it: its next success is
// reported, until the suspicion is dismissed. R15.
func TestANoticeOfASuspicionHasTheNextSuccessReported(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	attached := func(cfg Config) *replica {
		cfg.Storage = NewMemoryStorage()
		s, err := newSettings(cfg)
		assert.NoError(t, err)
		r := newReplica(s, "a", true, 1)
		r.hasRead(Record{}, 0, start)
		return &r
	}
	r := attached(Config{})
	assert.False(t, r.awaitsSuccess())
	assert.True(t, r.noticed(noticeChanged, 7), "everything else is read")
	assert.False(t, r.noticed(noticeSuspect, 7))
	assert.True(t, r.awaitsSuccess())
	assert.False(t, r.noticed(noticeDismissed, 8))
	assert.False(t, r.awaitsSuccess())
	assert.Same(t, &closed, r.shared, "nothing is kept of it")

	r.failing = true
	assert.True(t, r.noticed(noticeSuspect, 7), "a process that fails reads: the shared circuit may reject its calls")
	r.failing = false
	r.out.inFlight = true
	assert.True(t, r.noticed(noticeDismissed, 8), "the answer may have the suspicion")
	r.out.inFlight = false

	r.receive(Record{Generation: 9, Failures: 5, Threshold: 5, Score: 5, SuspectAt: start}, start)
	assert.False(t, r.noticed(noticeSuspect, 9), "it is known")
	assert.True(t, r.noticed(noticeSuspect, 8), "older than what is known: the storage may have lost something")
	assert.True(t, r.noticed(noticeDismissed, 10), "who knows the suspicion reads that it is over")

	r = attached(Config{FailureRate: 0.5})
	assert.True(t, r.noticed(noticeSuspect, 7), "successes are no evidence of its own")

	r = attached(Config{})
	r.detach(errStorageTimeout, start)
	assert.True(t, r.noticed(noticeSuspect, 7), "a detached process reads")
}

func TestNoticesOfRecords(t *testing.T) {
	calm := Record{Generation: 1, Failures: 4}
	suspect := Record{Generation: 2, Failures: 5, Threshold: 5, Score: 5}
	dismissed := Record{Generation: 3}
	open := suspect
	open.State, open.Generation, open.Since = StateOpen, 3, 3
	manual := Record{Generation: 3, Since: 3, Manual: 3}
	rated := Record{Generation: 2, Rated: true}
	for _, c := range []struct {
		before, after Record
		want          notice
	}{
		{calm, suspect, noticeSuspect},
		{suspect, dismissed, noticeDismissed},
		{suspect, open, noticeChanged},
		{suspect, manual, noticeChanged},
		{calm, rated, noticeChanged},
		{rated, dismissed, noticeChanged},
		{open, dismissed, noticeChanged},
	} {
		n := c.after.notice(&c.before)
		assert.Equal(t, c.want, n, "%v after %v", c.after, c.before)
		got, generation := parseNotice(formatNotice(n, c.after.Generation))
		assert.Equal(t, n, got)
		if n != noticeChanged {
			assert.Equal(t, c.after.Generation, generation)
		}
	}
	for _, message := range []string{"", "1700000000000", "suspect", "suspect ", "suspect -1", "suspect 1e3", "suspect 99999999999999999999", "dismissed " + strings.Repeat("9", 1000), "changed 5", "Suspect 5"} {
		n, _ := parseNotice(message)
		assert.Equal(t, noticeChanged, n, "%q", message)
	}
}
