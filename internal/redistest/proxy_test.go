package redistest_test

// This file tests the Proxy.

import (
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

// proxied returns a proxy, a connected client through the proxy, which never retries, and
// a direct client.
func proxied(t *testing.T) (p *redistest.Proxy, through, direct *redis.Client) {
	s := redistest.Start(t)
	p = redistest.StartProxy(t, s.Addr())
	through = s.Client(func(o *redis.Options) {
		o.Addr = p.Addr()
		o.ReadTimeout = time.Second
		o.MaxRetries = -1
		o.PoolSize = 1
	})
	require.NoError(t, through.Ping(t.Context()).Err())
	return p, through, s.Client()
}

func TestProxyForwardsBothDirections(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, through, direct := proxied(t)
	large := strings.Repeat("x", 1<<20)
	require.NoError(t, through.Set(ctx, "key", large, 0).Err())
	require.Equal(t, large, direct.Get(ctx, "key").Val())
	require.Equal(t, large, through.Get(ctx, "key").Val())
}

func TestDelay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, through, _ := proxied(t)

	p.SetDelay(30 * time.Millisecond)
	begin := time.Now()
	require.NoError(t, through.Ping(ctx).Err())
	require.GreaterOrEqual(t, time.Since(begin), 30*time.Millisecond)

	p.SetDelay(patience)
	var timeout net.Error
	require.ErrorAs(t, through.Ping(ctx).Err(), &timeout)
	require.True(t, timeout.Timeout())

	p.SetDelay(0)
	require.NoError(t, through.Ping(ctx).Err())
}

func TestBlackHoleKeepsConnections(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, through, direct := proxied(t)

	p.Swallow(true)
	var timeout net.Error
	require.ErrorAs(t, through.Set(ctx, "key", "lost", 0).Err(), &timeout)
	require.True(t, timeout.Timeout())
	require.ErrorIs(t, direct.Get(ctx, "key").Err(), redis.Nil)

	p.Swallow(false)
	require.NoError(t, through.Set(ctx, "key", "kept", 0).Err())
	require.Equal(t, "kept", direct.Get(ctx, "key").Val())
}

func TestEndOfBlackHoleClosesConnectionsThatLostBytes(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	idle, busy := dial(t, p), dial(t, p)
	require.Equal(t, "+PONG\r\n", ping(t, idle))
	require.Equal(t, "+PONG\r\n", ping(t, busy))

	p.Swallow(true)
	_, err := io.WriteString(busy, "PING\r\n")
	require.NoError(t, err)
	require.ErrorIs(t, readError(busy, 50*time.Millisecond), errTimeout, "no reply, and no reset")

	p.Swallow(false)
	require.ErrorIs(t, readError(busy, patience), errClosed)
	require.Equal(t, "+PONG\r\n", ping(t, idle))
}

func TestBlackHoleHidesTheEndOfTheServer(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	conn := dial(t, p)
	require.Equal(t, "+PONG\r\n", ping(t, conn))

	p.Swallow(true)
	s.Kill()
	require.ErrorIs(t, readError(conn, 50*time.Millisecond), errTimeout)

	p.Swallow(false)
	require.ErrorIs(t, readError(conn, patience), errClosed)
}

func TestDroppedReplyCausesRetry(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	client := s.Client(func(o *redis.Options) { o.Addr = p.Addr() })

	p.DropReplies(1)
	require.Equal(t, int64(2), client.Incr(ctx, "first").Val())

	p.DropReplies(3) // the number of the client's retries
	require.Equal(t, int64(4), client.Incr(ctx, "second").Val())

	require.Equal(t, int64(1), client.Incr(ctx, "third").Val())
}

func TestCutAll(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, through, _ := proxied(t)
	conn := dial(t, p)
	require.Equal(t, "+PONG\r\n", ping(t, conn))

	p.CutAll()

	require.ErrorIs(t, readError(conn, patience), errClosed)
	require.Eventually(t, func() bool { return through.Ping(ctx).Err() == nil }, patience, pace)
}

func TestEndOfTheServerClosesConnections(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	conn := dial(t, p)
	require.Equal(t, "+PONG\r\n", ping(t, conn))

	s.Kill()
	require.ErrorIs(t, readError(conn, patience), errClosed)
	require.ErrorIs(t, readError(dial(t, p), patience), errClosed, "the server has ended")
}

func TestClosedProxyHasNoGoroutines(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	p.SetDelay(time.Hour)
	held := dial(t, p)
	_, err := io.WriteString(held, "PING\r\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		commands, err := s.Commands(t.Context())
		return err == nil && commands["ping"] == 1
	}, patience, pace, "the reply is delayed")
	p.Swallow(true)
	require.NoError(t, dial(t, p).Close())

	p.Close()

	require.ErrorIs(t, readError(held, patience), errClosed)
	_, err = net.Dial("tcp", p.Addr())
	require.Error(t, err)
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	require.NotContains(t, string(stacks), "redistest.(*Proxy)")
	p.Close()
}

func dial(t *testing.T, p *redistest.Proxy) net.Conn {
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func ping(t *testing.T, conn net.Conn) string {
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(conn, "PING\r\n")
	require.NoError(t, err)
	reply := make([]byte, 7)
	_, err = io.ReadFull(conn, reply)
	require.NoError(t, err)
	return string(reply)
}

var (
	errTimeout = errors.New("nothing received")
	errClosed  = errors.New("closed by the other side")
)

// readError returns why nothing can be read.
func readError(conn net.Conn, within time.Duration) error {
	_ = conn.SetReadDeadline(time.Now().Add(within))
	n, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	switch {
	case n > 0:
		return nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return errTimeout
	default:
		return errClosed
	}
}
