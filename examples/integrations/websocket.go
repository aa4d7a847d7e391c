package integrations

import (
	"net/http"

	"github.com/coder/websocket"
	"github.com/infuse-go/infuse"
)

// WebSocketOptions has websocket.Dial shake hands over the breaker. The
// handshake is what counts: a connection that was made holds no trial, however
// long it lives, and how it ends counts for nothing.
func WebSocketOptions(transport *infuse.Transport) *websocket.DialOptions {
	return &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}}
}
