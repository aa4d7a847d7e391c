package recipes

// This file tests readiness endpoints with and without a circuit.

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// pod is a process of a service that calls an upstream, behind a load balancer that
// sends requests to ready pods only.
type pod struct {
	breaker *infuse.Breaker
	ready   http.HandlerFunc
}

func (p *pod) isReady() bool {
	w := httptest.NewRecorder()
	p.ready(w, httptest.NewRequest(http.MethodGet, "/ready", nil))
	return w.Code == http.StatusOK
}

// runPods sends one request a second to two pods. The upstream is down for the first
// minute. It returns the time of the last failed request, and the number of requests that
// reached no pod.
func runPods(t *testing.T, ready func(*infuse.Breaker) http.HandlerFunc, lasts time.Duration) (lastFailure time.Duration, noPod int) {
	storage, began := infuse.NewMemoryStorage(), time.Now()
	pods := make([]*pod, 2)
	for i := range pods {
		b := start(t, infuse.Config{Storage: storage})
		pods[i] = &pod{b, ready(b)}
	}
	for second := 0; time.Since(began) < lasts; second++ {
		var receiver *pod
		for i := range pods {
			if p := pods[(second+i)%2]; p.isReady() {
				receiver = p
				break
			}
		}
		failed := receiver == nil
		if failed {
			noPod++
		} else {
			failed = receiver.breaker.Call(t.Context(), func(context.Context) error {
				if time.Since(began) < time.Minute {
					return errUnavailable
				}
				return nil
			}) != nil
		}
		if failed {
			lastFailure = time.Since(began)
		}
		time.Sleep(time.Second)
	}
	return lastFailure, noPod
}

// A readiness endpoint that reads the circuit makes an outage permanent: unready pods
// receive no calls, so there is no trial, so they stay unready.
func TestReadinessGatedOnACircuitNeverRecovers(t *testing.T) {
	gated := func(b *infuse.Breaker) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if b.State() == infuse.StateOpen {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		last, noPod := runPods(t, gated, time.Hour)
		t.Logf("the upstream is healthy after 1m0s; the last failed request is after %v; %d of 3600 requests reached no pod", last, noPod)
		require.Equal(t, time.Hour-time.Second, last)
		require.Greater(t, noPod, 3500)
	})
}

// Without the circuit in the endpoint the service recovers with the next trial.
func TestReadinessWithoutACircuitRecovers(t *testing.T) {
	ungated := func(*infuse.Breaker) http.HandlerFunc { return Ready(func() bool { return false }) }
	synctest.Test(t, func(t *testing.T) {
		last, noPod := runPods(t, ungated, time.Hour)
		t.Logf("the upstream is healthy after 1m0s; the last failed request is after %v; %d of 3600 requests reached no pod", last, noPod)
		require.Less(t, last, 2*time.Minute+5*time.Second)
		require.Zero(t, noPod)
	})
	require.True(t, (&pod{ready: Ready(func() bool { return false })}).isReady())
	require.False(t, (&pod{ready: Ready(func() bool { return true })}).isReady())
}
