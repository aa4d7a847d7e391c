package redistest_test

// This file tests the Server.

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience = 10 * time.Second
	pace     = 10 * time.Millisecond
)

// asParent makes the test binary start a server, print its address, and then hang.
const asParent = "REDISTEST_AS_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(asParent) != "" {
		s, err := redistest.Launch()
		if err != nil {
			panic(err)
		}
		fmt.Println(s.Addr())
		time.Sleep(time.Minute)
	}
	// The tests mostly wait for servers.
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	os.Exit(redistest.Run(m))
}

func TestServerStartsEmpty(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := redistest.Start(t).Client()

	require.Equal(t, int64(0), client.DBSize(ctx).Val())
	require.NoError(t, client.Set(ctx, "key", "value", 0).Err())
	require.Equal(t, "value", client.Get(ctx, "key").Val())
}

func TestArgsReachTheServer(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t, "--maxmemory", "5mb", "--appendfsync", "no").Client()

	got, err := client.ConfigGet(t.Context(), "maxmemory").Result()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"maxmemory": "5242880"}, got)
}

func TestInvalidArgIsAnErrorOfTheServer(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	_, err := redistest.Launch("--nonsense", "1")
	require.ErrorContains(t, err, "nonsense")
}

func TestPortInUseIsAnError(t *testing.T) {
	t.Parallel()
	other := redistest.Start(t)

	_, err := redistest.LaunchOn(other.Port())
	require.ErrorContains(t, err, "redis-server ended")
	require.NoError(t, other.Client().Ping(t.Context()).Err())
}

func TestServersAreIndependent(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	servers := make([]*redistest.Server, 8)
	var starts sync.WaitGroup
	for i := range servers {
		starts.Go(func() {
			var err error
			servers[i], err = redistest.Launch()
			assert.NoError(t, err)
		})
	}
	starts.Wait()
	for i, s := range servers {
		require.NotNil(t, s)
		defer s.Close()
		require.NoError(t, s.Client().Set(t.Context(), "key", i, 0).Err())
	}
	for i, s := range servers {
		require.Equal(t, fmt.Sprint(i), s.Client().Get(t.Context(), "key").Val())
	}
}

func TestPausedServerDoesNotReply(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	client := s.Client(func(o *redis.Options) {
		o.ReadTimeout = 50 * time.Millisecond
		o.MaxRetries = -1
	})
	require.NoError(t, client.Ping(ctx).Err())

	for range 5 {
		s.Pause()
		var timeout net.Error
		require.ErrorAs(t, client.Ping(ctx).Err(), &timeout)
		require.True(t, timeout.Timeout())

		s.Resume()
		require.NoError(t, s.Client().Ping(ctx).Err())
	}
}

func TestKilledServerRestartsEmptyWithTheSameAddress(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t, "--maxmemory", "5mb")
	client, addr := s.Client(), s.Addr()
	require.NoError(t, client.Set(ctx, "key", "value", 0).Err())

	s.Kill()
	_, err := net.Dial("tcp", addr)
	require.Error(t, err, "the process has ended when Kill returns")

	require.NoError(t, s.Restart())
	require.Equal(t, addr, s.Addr())
	require.ErrorIs(t, s.Client().Get(ctx, "key").Err(), redis.Nil)
	require.Equal(t, "5242880", s.Client().ConfigGet(ctx, "maxmemory").Val()["maxmemory"])
	require.Eventually(t, func() bool { return client.Ping(ctx).Err() == nil }, patience, pace)
}

func TestRestartOfRunningServer(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	require.NoError(t, s.Client().Set(t.Context(), "key", "value", 0).Err())
	require.NoError(t, s.Restart())
	require.ErrorIs(t, s.Client().Get(t.Context(), "key").Err(), redis.Nil)
}

func TestReplicaRestartsEmpty(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	master := redistest.Start(t)
	require.NoError(t, master.Client().Set(ctx, "key", "value", 0).Err())
	replica := redistest.Start(t, "--replicaof", "127.0.0.1", fmt.Sprint(master.Port()))
	require.Eventually(t, func() bool {
		return replica.Client().Get(ctx, "key").Val() == "value"
	}, patience, pace)

	master.Kill()
	require.NoError(t, replica.Restart())
	require.ErrorIs(t, replica.Client().Get(ctx, "key").Err(), redis.Nil)
}

func TestCloseRemovesEverything(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	states := map[string]func(*redistest.Server){
		"running": func(*redistest.Server) {},
		"paused":  (*redistest.Server).Pause,
		"killed":  (*redistest.Server).Kill,
		"killed while paused": func(s *redistest.Server) {
			s.Pause()
			s.Kill()
		},
		"closed": (*redistest.Server).Close,
	}
	for state, reach := range states {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s, err := redistest.Launch()
			require.NoError(t, err)
			client := s.Client()
			reach(s)

			s.Close()

			_, err = net.Dial("tcp", s.Addr())
			require.Error(t, err)
			require.NoDirExists(t, s.Dir())
			require.ErrorIs(t, client.Ping(t.Context()).Err(), redis.ErrClosed)
			s.Pause()
			s.Resume()
			s.Kill()
			require.Error(t, s.Restart())
		})
	}
}

func TestCommandsCountsCallsByName(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	client := s.Client()
	before, err := s.Commands(ctx)
	require.NoError(t, err)
	require.Zero(t, before["evalsha"])

	script := redis.NewScript(`return redis.call('PUBLISH', KEYS[1], 'message')`)
	require.NoError(t, script.Load(ctx, client).Err())
	for range 3 {
		require.NoError(t, script.EvalSha(ctx, client, []string{"channel"}).Err())
	}
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())

	after, err := s.Commands(ctx)
	require.NoError(t, err)
	require.Equal(t, int64(3), after["evalsha"])
	require.Equal(t, int64(3), after["publish"])
	require.Equal(t, int64(1), after["config|set"])
}

func TestCommandsOfKilledServerIsAnError(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	s.Kill()
	_, err := s.Commands(t.Context())
	require.Error(t, err)
}

func TestServerEndsWithKilledParent(t *testing.T) {
	redistest.Require(t)
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("requires Linux")
	}
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), asParent+"=1", "TMPDIR="+t.TempDir())
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	var addr string
	_, err = fmt.Fscan(out, &addr)
	require.NoError(t, err)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	require.NoError(t, conn.Close())

	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()

	require.Eventually(t, func() bool {
		_, err := net.Dial("tcp", addr)
		return err != nil
	}, patience, pace)
}

func TestWithoutRedisServer(t *testing.T) {
	for name, value := range map[string]string{"PATH": "", "INFUSE_REDIS_SERVER": "no-such-server"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("INFUSE_REDIS_SERVER", "")
			t.Setenv(name, value)
			testWithoutRedisServer(t)
		})
	}
}

func testWithoutRedisServer(t *testing.T) {
	_, err := redistest.Launch()
	require.ErrorIs(t, err, redistest.ErrNotInstalled)
	require.ErrorIs(t, err, exec.ErrNotFound)

	t.Setenv("CI", "")
	require.Equal(t, "skip: redis-server is not installed: skipped", outcome(t))
	t.Setenv("CI", "true")
	require.True(t, strings.HasPrefix(outcome(t), "fatal: "))
}

// outcome returns how a test that calls Start ends.
func outcome(t *testing.T) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		redistest.Start(r)
	}()
	<-done
	return r.ended
}

// A recorder is a testing.TB that records how the test ended.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Skip(args ...any) { r.end("skip", args) }

func (r *recorder) Fatal(args ...any) { r.end("fatal", args) }

func (r *recorder) end(how string, args []any) {
	r.ended = how + ": " + fmt.Sprint(args...)
	runtime.Goexit()
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
