package ops

import (
	"context"
	"net/http"
	"sync"
)

// This file is how streams end when their server shuts down, which would wait
// for them otherwise.

// shutdowns has a context for each server, done once it shuts down.
type shutdowns struct {
	mu      sync.Mutex
	servers map[*http.Server]context.Context
}

// of returns the context of the request's server. Each request asks for it: a
// server that shuts down already tells nobody new.
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
