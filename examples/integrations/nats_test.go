package integrations_test

// This file tests a consumer of NATS.

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// A consumer takes no messages while its circuit is open, because Wait does not return
// before it is ready for a trial. It continues after the trial.
func TestNATSConsumerPausesWhileItsCircuitIsOpen(t *testing.T) {
	const messages, failMax, reset = 30, 3, 200 * time.Millisecond
	consumer := startNATS(t, messages)
	breaker, err := infuse.New("prices", infuse.Config{FailMax: failMax, ResetTimeout: reset})
	require.NoError(t, err)
	t.Cleanup(breaker.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var healthy atomic.Bool
	calls := 0
	work := func(context.Context) error {
		if calls++; !healthy.Load() {
			return errors.New("503 Service Unavailable")
		}
		return nil
	}
	var recovered atomic.Int64 // after how many open durations
	began := time.Now()
	outage := time.AfterFunc(5*reset, func() {
		healthy.Store(true)
		recovered.Store(int64(time.Since(began) / reset))
	})
	defer outage.Stop()
	taken, handled := 0, 0
	for handled < messages {
		require.NoError(t, breaker.Wait(ctx))
		batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(time.Second))
		require.NoError(t, err)
		for message := range batch.Messages() {
			taken++
			if breaker.Call(ctx, work) != nil {
				require.NoError(t, message.Nak())
				continue
			}
			require.NoError(t, message.Ack())
			handled++
		}
	}
	require.GreaterOrEqual(t, time.Since(began), 5*reset)
	// FailMax failures, and one trial per ResetTimeout of the outage.
	require.LessOrEqual(t, calls, messages+failMax+int(recovered.Load())+1)
	require.Equal(t, calls, taken, "each message that is taken is used for a call")
}

// startNATS starts a broker with a stream of messages, and returns a consumer of it.
func startNATS(t *testing.T, messages int) jetstream.Consumer {
	t.Helper()
	broker, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true})
	require.NoError(t, err)
	go broker.Start()
	t.Cleanup(func() {
		broker.Shutdown()
		broker.WaitForShutdown()
	})
	require.True(t, broker.ReadyForConnections(30*time.Second))
	conn, err := nats.Connect(broker.ClientURL())
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}})
	require.NoError(t, err)
	for i := range messages {
		_, err := js.Publish(t.Context(), "orders", fmt.Append(nil, i))
		require.NoError(t, err)
	}
	consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	return consumer
}
