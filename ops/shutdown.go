package ops

import (
	"context"
	"net/http"
	"sync"
)

// This file ends the streams of a server that shuts down, because it waits for them.

// shutdowns has a context for each server, which is done when the server shuts down.
type shutdowns struct {
	mu      sync.Mutex
	servers map[*http.Server]context.Context
}

// of returns the context of the request's server. Each request calls it, because a
// server that is already shutting down notifies no new callback.
func (s *shutdowns) of(r *http.Request) context.Context {
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok {
		return context.Background()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.servers[server]
	if ctx == nil {
		if s.servers == nil {
			s.servers = make(map[*http.Server]context.Context)
		}
		over, cancel := context.WithCancel(context.Background())
		server.RegisterOnShutdown(cancel)
		s.servers[server], ctx = over, over
	}
	return ctx
}
