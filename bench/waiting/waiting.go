// Package waiting waits for what happens in the background.
package waiting

import (
	"context"
	"errors"
	"time"

	"github.com/infuse-go/infuse/internal/redistest"
)

var errTooLong = errors.New("not within 30s")

// For waits until it is reached, for 30 s at most.
func For(reached func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); !reached(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errTooLong
		}
	}
	return nil
}

// ForSubscribers waits until so many have subscribed to the one circuit of a
// server: they do so in the background.
func ForSubscribers(server *redistest.Server, members int) error {
	client := server.Client()
	defer client.Close()
	ctx := context.Background()
	return For(func() bool {
		channels := client.PubSubChannels(ctx, "*").Val()
		return len(channels) == 1 && client.PubSubNumSub(ctx, channels[0]).Val()[channels[0]] == int64(members)
	})
}
