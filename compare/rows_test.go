package compare_test

// This file contains the rows of the table.

import (
	"strings"
	"time"
)

// row is a line of the table: a sequence, with the calls at which each breaker opens, in
// the order of subjects.
type row struct {
	name     string
	openTime time.Duration // preset.openTime if 0
	before   []part        // replayed first; these calls have no positive numbers
	parts    []part
	opens    [columns][]int
	why      string
}

// rounds returns a pattern of calls that starts with failures and ends with successes.
func rounds(failures, calls int) string {
	return strings.Repeat("F", failures) + strings.Repeat("s", calls-failures)
}

// at returns the calls at which a breaker opens.
func at(calls ...int) []int { return calls }

var (
	healthyMinute          = []part{{6000, hundredth, "s"}}
	minuteOfBaselineErrors = []part{{6000, hundredth, rounds(1, 100)}}
	never                  []int
)

// everySubject returns the openings of a row in which all breakers agree.
func everySubject(openings []int) (all [columns][]int) {
	for i := range all {
		all[i] = openings
	}
	return all
}

const (
	contain     = "their windows include the earlier successes"
	alike       = "all agree"
	atSuccesses = "failsafe-go also evaluates at successes"
)

var rows = []row{
	{
		name: "40 % fail", parts: []part{{6000, hundredth, "FsFss"}},
		opens: everySubject(never), why: alike,
	},
	{
		name: "60 % fail", parts: []part{{6000, hundredth, "FFsFs"}},
		opens: [columns][]int{at(21), at(21), at(21), at(20), at(21)},
		why:   atSuccesses,
	},
	{
		name: "50 % fail, exactly the rate; a success first", parts: []part{{6000, hundredth, "sF"}},
		opens: [columns][]int{at(22), at(22), at(22), at(20), at(20)},
		why:   "the window of Infuse starts with the first failure, so it has one call fewer",
	},
	{
		name: "a total outage from the first call on", parts: []part{{6000, hundredth, "F"}},
		opens: everySubject(at(20)), why: alike,
	},
	{
		name: "a healthy minute, then a total outage", before: healthyMinute, parts: []part{{6000, hundredth, "F"}},
		opens: [columns][]int{at(20), at(20), at(20), at(492), at(500)},
		why:   contain + "; failsafe-go rounds 49.5 % up",
	},
	{
		name: "a healthy minute, then 60 % fail", before: healthyMinute, parts: []part{{6000, hundredth, "FFsFs"}},
		opens: [columns][]int{at(21), at(21), at(21), at(800), at(801)},
		why:   contain,
	},
	{
		name: "a healthy minute, 30 failures, healthy again", before: healthyMinute, parts: []part{{30, hundredth, "F"}, {3000, hundredth, "s"}},
		opens: [columns][]int{at(20), at(20), at(20), never, never},
		why:   contain + ": 0.3 s of failures are 3 % of their window",
	},
	{
		name: "a healthy minute, 19 failures, healthy again", before: healthyMinute, parts: []part{{19, hundredth, "F"}, {3000, hundredth, "s"}},
		opens: everySubject(never), why: "all agree: below MinCalls at the last failure",
	},
	{
		name: "a minute with 1 % errors, then a total outage", before: minuteOfBaselineErrors, parts: []part{{6000, hundredth, "F"}},
		opens: [columns][]int{at(491), at(491), at(495), at(482), at(491)},
		why:   "all windows include the earlier calls; their buckets start at different times, and failsafe-go rounds 49.5 % up",
	},
	{
		name: "a minute with 1 % errors, then 60 % fail", before: minuteOfBaselineErrors, parts: []part{{6000, hundredth, "FFsFs"}},
		opens: [columns][]int{at(801), at(801), at(831), at(800), at(801)},
		why:   "all windows include the earlier calls; their buckets start at different times",
	},
	{
		name: "10 failures, 90 successes, repeatedly", parts: []part{{6000, hundredth, rounds(10, 100)}},
		opens: [columns][]int{never, never, never, at(20), never},
		why:   atSuccesses + ": 10 of the first 20 calls have failed",
	},
	{
		name: "501 successes, 499 failures, repeatedly", parts: []part{{6000, hundredth, strings.Repeat("s", 501) + rounds(499, 499)}},
		opens: [columns][]int{at(521), at(521), at(521), at(993), at(1000)},
		why:   contain,
	},
	{
		name: "one call a second, all fail", parts: []part{{600, time.Second, "F"}},
		opens: everySubject(never), why: "all agree: 10 calls in the window are below MinCalls",
	},
	{
		name: "two calls a second, all fail, for 12 s", parts: []part{{24, time.Second / 2, "F"}},
		opens: [columns][]int{at(21), at(21), at(20), at(21), at(21)},
		why:   "20 calls exactly fill the window; buckets start before the first call",
	},
	{
		name: "19 failures, 10 s of silence, 19 failures", parts: []part{{19, hundredth, "F"}, {1, 10 * time.Second, "F"}, {18, hundredth, "F"}},
		opens: everySubject(never), why: "all agree: the silence is longer than the window",
	},
	{
		name: "10 failures, 9.5 s of silence, 10 failures", parts: []part{{10, hundredth, "F"}, {1, 9500 * time.Millisecond, "F"}, {9, hundredth, "F"}},
		opens: everySubject(at(20)), why: "all agree: the silence is shorter",
	},
	{
		name: "one failure, 20.5 healthy seconds, then a total outage", before: []part{{1, hundredth, "F"}, {2050, hundredth, "s"}}, parts: []part{{3000, hundredth, "F"}},
		opens: [columns][]int{at(20), at(20), at(20), at(449), at(452)},
		why:   contain,
	},
	{
		name: "open for 5 s: an outage of 8 s, 12 healthy seconds, 60 % fail", openTime: 5 * time.Second,
		parts: []part{{800, hundredth, "F"}, {1200, hundredth, "s"}, {700, hundredth, "FFsFs"}},
		opens: [columns][]int{at(20, 520, 2021, 2521), at(20, 520, 2021, 2521), at(20, 520, 2021, 2521), at(20, 520), at(20, 521)},
		why:   contain + "; gobreaker runs its trial after its open time, not at its end",
	},
}

// loneFailure is not in the table: it tests a property that only Infuse has.
var loneFailure = row{
	before: []part{{1, hundredth, "F"}, {1050, hundredth, "s"}}, parts: []part{{3000, hundredth, "F"}},
}
