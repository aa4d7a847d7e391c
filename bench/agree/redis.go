package main

import (
	"context"
	"time"

	"github.com/infuse-go/infuse/internal/redistest"
)

// sent is how many scripts Redis was sent: all that a breaker sends in health
// and in trouble, but for the keeping of its subscription.
func sent(server *redistest.Server) int64 {
	counts, err := server.Commands(context.Background())
	if err != nil {
		return 0
	}
	return counts["evalsha"] + counts["eval"]
}

// pauses has Redis stand still for so long, three times a second, until stop.
func pauses(server *redistest.Server, pause time.Duration) (stop func()) {
	if pause == 0 {
		return func() {}
	}
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			case <-time.After(300 * time.Millisecond):
			}
			server.Pause()
			time.Sleep(pause)
			server.Resume()
		}
	}()
	return func() { close(over); <-done }
}
