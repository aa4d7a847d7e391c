package connectinfuse_test

// This file tests the interceptor of handlers.

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

// rejections returns errors of handlers that contain a rejection.
func rejections() map[string]error {
	open := &infuse.OpenError{Circuit: "upstream.internal", State: infuse.StateOpen, Reason: "ticket 7", DueAt: time.Now().Add(time.Hour)}
	return map[string]error{
		"itself":             open,
		"wrapped":            fmt.Errorf("buying: %w", open),
		"joined":             errors.Join(errors.New("other"), open),
		"one of two wrapped": fmt.Errorf("%w: %w", codeError(connect.CodeInternal), open),
		"below a code":       connect.NewError(connect.CodeFailedPrecondition, open),
		"joined below a code, and wrapped": fmt.Errorf("buying: %w",
			connect.NewError(connect.CodeUnknown, errors.Join(errors.New("other"), open))),
	}
}

func requireUnavailable(t *testing.T, err error) {
	t.Helper()
	require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
	require.InDelta(t, time.Hour, retryDelay(t, err), float64(time.Minute))
	for _, secret := range []string{"upstream.internal", "ticket 7"} {
		require.NotContains(t, err.Error(), secret, "clients receive the text")
	}
}

func TestErrorOfARejectionIsUnavailableWithRetryInfo(t *testing.T) {
	for name, err := range rejections() {
		t.Run(name, func(t *testing.T) {
			answer := connectinfuse.Error(err)
			requireUnavailable(t, answer)
			require.ErrorIs(t, answer, infuse.ErrOpen)
			require.ErrorIs(t, answer, err)
		})
	}
	require.Equal(t, time.Second, retryDelay(t, connectinfuse.Error(&infuse.OpenError{State: infuse.StateHalfOpen})))
}

func TestErrorLeavesOtherErrorsAlone(t *testing.T) {
	require.NoError(t, connectinfuse.Error(nil))
	for _, err := range []error{errors.New("a bug"), codeError(connect.CodeNotFound), context.Canceled} {
		require.Equal(t, err, connectinfuse.Error(err))
	}
}

// The code was Unknown.
func TestHandlerAnswersARejectionWithUnavailable(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol []connect.ClientOption) {
		var result error
		s := &service{
			unary:  func(context.Context) error { return result },
			server: func(context.Context, *connect.ServerStream[bytes]) error { return result },
			client: func(context.Context, *connect.ClientStream[bytes]) error { return result },
			bidi:   func(context.Context, *connect.BidiStream[bytes, bytes]) error { return result },
		}
		f := startOn(t, s, s.handler(connect.WithInterceptors(connectinfuse.HandlerInterceptor())), infuse.Config{})
		f.protocol = protocol
		f.interceptor = connectinfuse.New(nil, connectinfuse.WithFailures())
		calls := map[string]func(*fixture) error{"unary": (*fixture).call}
		for kind, call := range kinds {
			calls[kind] = call
		}
		for kind, call := range calls {
			for name, err := range rejections() {
				t.Run(kind+", "+name, func(t *testing.T) {
					result = err
					got := call(f)
					require.NotErrorIs(t, got, infuse.ErrOpen, "ErrOpen is for circuits of the client")
					requireUnavailable(t, got)
				})
			}
			result = codeError(connect.CodeNotFound)
			require.Equal(t, connect.CodeNotFound, connect.CodeOf(call(f)))
		}
	})
}

func TestHandlerInterceptorDoesNothingInAClient(t *testing.T) {
	f := start(t, &service{unary: healthy})
	f.setState(infuse.StateOpen)
	outside := connect.WithInterceptors(connectinfuse.HandlerInterceptor(), f.interceptor)
	_, err := connect.NewClient[bytes, bytes](f.http, "http://"+f.address+"/test.Test/Unary", outside).CallUnary(f.ctx, connect.NewRequest(new(bytes)))
	requireRejected(t, err)
	require.ErrorContains(t, err, f.address)
}
