package integrations

// This file shows coder/websocket.

import (
	"net/http"

	"github.com/coder/websocket"
	"github.com/infuse-go/infuse"
)

// WebSocketOptions makes websocket.Dial use the breaker. Only the handshake counts: an
// open connection uses no trial slot, and its end is not counted.
func WebSocketOptions(transport *infuse.Transport) *websocket.DialOptions {
	return &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}}
}
