package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Redis keeps keys per database and channels per server, so a process receives
// the messages of every database. These tests check that a message changes
// nothing by itself.

// inDatabase returns the breaker of one process whose records live in a database.
func inDatabase(t *testing.T, server *redistest.Server, number int) (*infuse.Breaker, *redis.Client) {
	t.Helper()
	return pollingDatabase(t, server, number, time.Second)
}

func pollingDatabase(t *testing.T, server *redistest.Server, number int, poll time.Duration) (*infuse.Breaker, *redis.Client) {
	t.Helper()
	client := server.Client(func(o *redis.Options) { o.DB = number })
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{PollInterval: poll})
	b, err := infuse.New("inventory.internal", infuse.Config{Storage: storage, StorageTimeout: time.Minute, Instance: fmt.Sprint("database ", number)})
	require.NoError(t, err)
	t.Cleanup(func() { b.Stop(); require.NoError(t, storage.Close()) })
	requireSubscribers(t, client, number+1)
	return b, client
}

// requireSubscribers waits until so many processes are subscribed to the circuit.
func requireSubscribers(t *testing.T, client *redis.Client, n int) {
	t.Helper()
	const channel = "infuse:{inventory.internal}"
	require.Eventually(t, func() bool {
		return client.PubSubNumSub(t.Context(), channel).Val()[channel] == int64(n)
	}, 20*time.Second, time.Millisecond)
}

// TestADatabaseOpensNoCircuitOfAnother: staging in database 1 opened
// the circuit of production in database 0, and production itself wrote the
// override of staging into its own database.
// R42.
func TestADatabaseOpensNoCircuitOfAnother(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	production, client := inDatabase(t, server, 0)
	staging, _ := inDatabase(t, server, 1)
	ctx := t.Context()
	key := "infuse:{inventory.internal}"
	var calls, rejected int
	callFor := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
			calls++
			if errors.Is(production.Call(ctx, func(context.Context) error { return nil }), infuse.ErrOpen) {
				rejected++
			}
		}
	}
	for name, change := range map[string]func() error{
		"its calls fail": func() error {
			for range 20 {
				_ = staging.Call(ctx, func(context.Context) error { return errors.New("failed") })
			}
			return nil
		},
		"it is opened manually": func() error { return staging.SetState(ctx, infuse.StateOpen) },
		"it is forced open": func() error {
			return staging.Override(ctx, infuse.Override{State: infuse.StateOpen, Reason: "staging"})
		},
		"it is forced closed": func() error {
			return staging.Override(ctx, infuse.Override{State: infuse.StateClosed, Reason: "staging"})
		},
	} {
		require.NoError(t, change(), name)
		callFor(700 * time.Millisecond)
		require.Zero(t, rejected, "of %d calls of production, after in staging %s", calls, name)
		require.Equal(t, infuse.StateClosed, production.State(), name)
		require.Zero(t, client.Exists(ctx, key, key+":log").Val(), "in production's database, after in staging %s", name)
	}

	// A failure of production's own carries what it has seen: nothing of staging.
	require.NoError(t, staging.Override(ctx, infuse.Override{State: infuse.StateOpen, Reason: "staging"}))
	_ = production.Call(ctx, func(context.Context) error { return errors.New("failed") })
	callFor(700 * time.Millisecond)
	require.Zero(t, rejected)
	record, err := production.Record(ctx)
	require.NoError(t, err)
	require.Nil(t, record.Override)
	require.Equal(t, infuse.StateClosed, record.State)
	for _, text := range client.LRange(ctx, key+":log", 0, -1).Val() {
		require.NotContains(t, text, "staging")
	}
	t.Logf("%d calls of production, %d rejected", calls, rejected)
}

// A flood of another database's messages must not leave a process to the poll.
func TestADatabaseReceivesItsOwnMessagesBesideThoseOfAnother(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	production, client := pollingDatabase(t, server, 0, time.Hour) // it does not find the change by a poll
	staging, _ := inDatabase(t, server, 1)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = staging.SetState(context.Background(), infuse.StateOpen)
			}
		}
	}()
	other := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	t.Cleanup(func() { _ = other.Close() })
	to := infuse.StateOpen
	for range 10 {
		_, _, err := other.Apply(t.Context(), "inventory.internal", infuse.Change{Limits: hourLimits, Manual: &infuse.ManualState{To: to}})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return production.State() == to }, 30*time.Second, time.Millisecond)
		to = infuse.StateOpen - to
	}
}

// TestForgedMessagesHoldNoCircuit: a message with a time, a version
// or a generation of the far future held a circuit until the processes restarted.
// R41, R42.
func TestForgedMessagesHoldNoCircuit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	b, client := inDatabase(t, server, 0)
	ctx := t.Context()
	now := time.Now()
	far := now.AddDate(50, 0, 0)
	open := infuse.Record{State: infuse.StateOpen, Generation: far.UnixMilli(), Since: far.UnixMilli(), Opened: far.UnixMilli(), Manual: far.UnixMilli(), DueAt: far}
	forced := infuse.Record{Generation: far.UnixMilli(), Manual: far.UnixMilli(), Override: &infuse.Override{State: infuse.StateOpen, Reason: "forged"}}
	message := func(version int64, at time.Time, r infuse.Record) string {
		return fmt.Sprintf("%d %d %d 0 0  %s", version, at.UnixMilli(), at.UnixMilli(), infuse.AppendRecord(nil, r, now))
	}
	for i, text := range []string{
		message(1<<52, now, open),
		message(1<<52, far, open),
		message(1<<52, far, forced),
		message(1, now, open),
		message(now.UnixMicro(), time.UnixMilli(0), open),
		"9223372036854775807", "", "garbage", strings.Repeat("9 ", 1<<16), "\x00\xff",
	} {
		require.NoError(t, client.Publish(ctx, "infuse:{inventory.internal}", text).Err())
		for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			require.NoError(t, b.Call(ctx, func(context.Context) error { return nil }), "message %d: %.80q", i, text)
		}
		require.NoError(t, b.SetState(ctx, infuse.StateOpen))
		require.Equal(t, infuse.StateOpen, b.State(), "message %d", i)
		require.NoError(t, b.SetState(ctx, infuse.StateClosed))
		require.Equal(t, infuse.StateClosed, b.State(), "message %d: a manual change counts at once", i)
		record, err := b.Record(ctx)
		require.NoError(t, err)
		require.Less(t, record.Generation, now.Add(time.Hour).UnixMilli(), "message %d", i)
	}
}

// TestADismissalInAnotherDatabaseSilencesNobody: a process that had failures on record
// dropped them when a suspicion was dismissed in another database, or anybody said so. It
// did not report the success that ends the streak.
// R10, R42.
func TestADismissalInAnotherDatabaseSilencesNobody(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client()
	other := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	t.Cleanup(func() { _ = other.Close() })
	ctx := t.Context()
	report := func(c infuse.Calls) infuse.Record {
		c.Streak, c.Lead = c.Failures, c.Failures
		r, _, err := other.Apply(ctx, "inventory.internal", infuse.Change{Limits: hourLimits, Calls: c})
		require.NoError(t, err)
		return r
	}
	require.Equal(t, 3, report(infuse.Calls{Failures: 3}).Failures)
	b, _ := inDatabase(t, server, 0)
	generation := time.Now().Add(time.Minute).UnixMilli()
	for _, message := range []string{fmt.Sprint("dismissed ", generation), fmt.Sprintf("dismissed %d %d", generation, generation-1)} {
		require.NoError(t, client.Publish(ctx, "infuse:{inventory.internal}", message).Err())
		time.Sleep(200 * time.Millisecond) // until it was received
	}
	require.NoError(t, b.Call(ctx, func(context.Context) error { return nil }))
	require.Eventually(t, func() bool {
		r, err := b.Record(ctx)
		return err == nil && r.Failures == 0
	}, 5*time.Second, 10*time.Millisecond, "the success was not reported")
}

// TestADismissalReachesAProcessThatHasJustStarted: it takes the failures on record for
// its own until others dismiss them. It was not notified of that, and its first
// failure opened its local circuit.
// R12.
func TestADismissalReachesAProcessThatHasJustStarted(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	other := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = other.Close() })
	ctx := t.Context()
	report := func(c infuse.Calls) infuse.Record {
		c.Streak, c.Lead = c.Failures, c.Failures
		limits := hourLimits
		limits.Suspicion = 50 * time.Millisecond
		r, _, err := other.Apply(ctx, "inventory.internal", infuse.Change{Limits: limits, Calls: c})
		require.NoError(t, err)
		return r
	}
	report(infuse.Calls{Failures: 4})
	b, _ := inDatabase(t, server, 0)
	require.True(t, report(infuse.Calls{Failures: 1}).Suspect())
	time.Sleep(200 * time.Millisecond) // until the notice was received
	require.False(t, report(infuse.Calls{Successes: 2}).Suspect())
	time.Sleep(200 * time.Millisecond)
	_ = b.Call(ctx, func(context.Context) error { return errors.New("failed") })
	require.Equal(t, infuse.StateClosed, b.State())
}
