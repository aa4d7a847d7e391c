package integrations_test

import (
	"net/http"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

// echo returns each message of a WebSocket, until it is closed.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || string(message) == "close" {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

func requireEcho(t *testing.T, conn *websocket.Conn) {
	t.Helper()
	require.NoError(t, conn.Write(t.Context(), websocket.MessageText, []byte("hello")))
	_, message, err := conn.Read(t.Context())
	require.NoError(t, err)
	require.Equal(t, "hello", string(message))
}

func TestWebSocket(t *testing.T) {
	s, transport, breaker := startWith(t, echo)
	dial := func() (*websocket.Conn, error) {
		conn, _, err := websocket.Dial(t.Context(), s.URL, integrations.WebSocketOptions(transport))
		if err == nil {
			t.Cleanup(func() { _ = conn.CloseNow() })
		}
		return conn, err
	}
	healthy, err := dial()
	require.NoError(t, err)
	requireEcho(t, healthy)

	s.failing.Store(true)
	for range 3 {
		_, err := dial()
		require.ErrorContains(t, err, "502")
	}
	_, err = dial()
	require.ErrorIs(t, err, infuse.ErrOpen)
	require.Equal(t, int64(4), s.calls.Load(), "no request is sent")
	require.Equal(t, int64(1), s.rejections.Load())
	requireEcho(t, healthy) // open connections continue

	s.recover(t, breaker)
	trial, err := dial()
	require.NoError(t, err)
	require.Equal(t, infuse.StateClosed, breaker.State(), "the trial has ended, and its connection is still open")
	requireEcho(t, trial)
}

// A load balancer that restarts cuts all connections together.
func TestWebSocketsThatAreCutAreIgnored(t *testing.T) {
	s, transport, breaker := startWith(t, echo)
	for range 5 {
		conn, _, err := websocket.Dial(t.Context(), s.URL, integrations.WebSocketOptions(transport))
		require.NoError(t, err)
		require.NoError(t, conn.Write(t.Context(), websocket.MessageText, []byte("close")))
		_, _, err = conn.Read(t.Context())
		require.Error(t, err)
		require.NoError(t, conn.CloseNow())
	}
	require.Zero(t, s.failures.Load())
	require.Equal(t, infuse.StateClosed, breaker.State())
}
