package main

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/failsafe-go/failsafe-go"
	failsafebreaker "github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/sony/gobreaker/v2"

	"github.com/infuse-go/infuse"
)

// Over HTTP: round trippers over one that answers from memory. A
// call reads the response to its end and closes it, as callers do.

func webSubjects() []subject {
	return []subject{
		{name: "the transport alone", start: startBareTransport, floor: true},
		{name: transportName, set: "a circuit for each host", start: startTransport()},
		{name: transportName + ", LogListener", set: "a circuit for each host", start: startTransport(infuse.LogListener(quietLogger))},
		{name: "failsafehttp", module: "github.com/failsafe-go/failsafe-go", start: startFailsafeTransport,
			set: "one circuit, failures among the last as many calls"},
		{name: gobreakerName, module: "github.com/sony/gobreaker/v2", start: startGobreakerTransport,
			set: "one circuit, a round tripper of ten lines, which does not see errors of the body"},
	}
}

// memoryTransport is a service within the process. It is unhealthy under /unhealthy.
type memoryTransport struct{}

func (memoryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	status := http.StatusOK
	if r.URL.Path == "/unhealthy" {
		status = http.StatusInternalServerError
	}
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader("an answer")), ContentLength: 9, Request: r,
	}, nil
}

// overHTTP makes a round tripper a breaker of this benchmark.
func overHTTP(transport http.RoundTripper) breaker {
	return breaker{
		call: func(w work) func() error {
			url := "http://service.example/well"
			if w.plain() != nil {
				url = "http://service.example/unhealthy"
			}
			request, err := http.NewRequest(http.MethodGet, url, nil)
			return func() error {
				if err != nil {
					return err
				}
				return roundTrip(transport, request)
			}
		},
		stop: func() {},
	}
}

func roundTrip(transport http.RoundTripper, request *http.Request) error {
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if err == nil && response.StatusCode >= http.StatusInternalServerError {
		return errUnhealthy
	}
	return err
}

func startBareTransport(int) (breaker, error) { return overHTTP(memoryTransport{}), nil }

func startTransport(listeners ...*infuse.Listener) func(int) (breaker, error) {
	return func(failMax int) (breaker, error) {
		group, err := infuse.NewGroup(infuse.Config{FailMax: failMax, ResetTimeout: openTime, Listeners: listeners})
		if err != nil {
			return breaker{}, err
		}
		b := overHTTP(&infuse.Transport{Base: memoryTransport{}, Breakers: group})
		b.stop = group.Stop
		return b, nil
	}
}

func startFailsafeTransport(failMax int) (breaker, error) {
	circuit := failsafebreaker.NewBuilder[*http.Response]().
		HandleIf(func(r *http.Response, err error) bool {
			return err != nil || r != nil && r.StatusCode >= http.StatusInternalServerError
		}).
		WithFailureThreshold(uint(failMax)).
		WithDelay(openTime).
		Build()
	return overHTTP(failsafehttp.NewRoundTripperWithExecutor(memoryTransport{}, failsafe.With(circuit))), nil
}

func startGobreakerTransport(failMax int) (breaker, error) {
	return overHTTP(&gobreakerTransport{gobreaker.NewCircuitBreaker[*http.Response](gobreakerSettings(failMax))}), nil
}

type gobreakerTransport struct {
	circuit *gobreaker.CircuitBreaker[*http.Response]
}

var errStatus = errors.New("status of a server's failure")

func (t *gobreakerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.circuit.Execute(func() (*http.Response, error) {
		response, err := memoryTransport{}.RoundTrip(r)
		if err == nil && response.StatusCode >= http.StatusInternalServerError {
			err = errStatus
		}
		return response, err
	})
	if err == errStatus {
		err = nil
	}
	return response, err
}
