package infuse

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter is the longest that a Retry-After can keep a circuit open: it
// is a stranger's word.
const maxRetryAfter = time.Hour

// retryAfter is how long a 503 or a 429 asks not to be called: 0 if it does
// not, or not in a way that can be understood.
func retryAfter(response *http.Response) time.Duration {
	if response.StatusCode != http.StatusServiceUnavailable && response.StatusCode != http.StatusTooManyRequests {
		return 0
	}
	value := strings.TrimSpace(response.Header.Get("Retry-After"))
	if isDigits(value) {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(sentAt(response))), maxRetryAfter)
}

// sentAt is when the service sent the response by its own clock, which its
// dates go by; by ours if it does not tell.
func sentAt(response *http.Response) time.Time {
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		return date
	}
	return time.Now()
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// retryAfterHeader is how long a rejection lasts, in whole seconds. It is never
// 0: that would invite to come again at once, when a trial decides.
func retryAfterHeader(rejected *OpenError) string {
	left := rejected.RetryAfter()
	return strconv.FormatInt(max(1, int64((left+time.Second-1)/time.Second)), 10)
}
