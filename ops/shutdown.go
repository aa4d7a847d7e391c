package ops

// This file ends streams when their server shuts down: http.Server.Shutdown waits for
// them.

import (
	"context"
	"net/http"
	"sync"
)

// shutdowns has a context for each server, which is done once the server shuts down.
type shutdowns struct {
	mu      sync.Mutex
	servers map[*http.Server]context.Context
}

// of returns the context of the request's server. Each request calls it: a server that
// is already shutting down calls no callback that is registered then.
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
