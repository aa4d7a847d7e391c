package main

import (
	"context"
	"errors"
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

// subscribed waits until so many have subscribed to the circuit: they do so in
// the background.
func subscribed(server *redistest.Server, members int) error {
	client := server.Client()
	defer client.Close()
	ctx := context.Background()
	return wait(func() bool {
		channels := client.PubSubChannels(ctx, "*").Val()
		return len(channels) == 1 && client.PubSubNumSub(ctx, channels[0]).Val()[channels[0]] == int64(members)
	})
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

var errTooLong = errors.New("not within 30s")

func wait(reached func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); !reached(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errTooLong
		}
	}
	return nil
}
