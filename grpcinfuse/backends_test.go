package grpcinfuse_test

// This file tests Backends.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

// backend is one of several servers.
type backend struct {
	address   string
	unhealthy atomic.Bool
	hangs     atomic.Bool
	calls     atomic.Int64
}

// several is a client of several real servers behind one name.
type several struct {
	testpb.TestServiceClient
	t        *testing.T
	conn     *grpc.ClientConn
	group    *infuse.Group
	resolver *manual.Resolver
	backends []*backend
	ctx      context.Context
}

var policies atomic.Int64 // gRPC has one registry of policies

// startSeveral starts three backends. Their circuits open after three consecutive
// failures. retry is a retry policy of gRPC, or empty.
func startSeveral(t *testing.T, cfg infuse.Config, retry string, options ...grpcinfuse.Option) *several {
	t.Helper()
	s := &several{t: t, resolver: manual.NewBuilderWithScheme("test")}
	var addresses []resolver.Endpoint
	for range 3 {
		m := new(backend)
		result := func() error {
			m.calls.Add(1)
			if m.unhealthy.Load() {
				return codeError(codes.Unavailable)
			}
			return nil
		}
		_, m.address = serve(t, &service{
			unary: func(ctx context.Context) error {
				err := result()
				if m.hangs.Load() {
					<-ctx.Done()
				}
				return err
			},
			server: func(to grpc.ServerStreamingServer[output]) error {
				if err := result(); err != nil {
					return err
				}
				if err := to.Send(new(output)); err != nil {
					return err
				}
				<-to.Context().Done()
				return nil
			},
		}, "127.0.0.1:0")
		s.backends = append(s.backends, m)
		addresses = append(addresses, resolver.Endpoint{Addresses: []resolver.Address{{Addr: m.address}}})
	}
	s.resolver.InitialState(resolver.State{Endpoints: addresses})
	cfg.FailMax, cfg.CountCalls = 3, true
	var err error
	s.group, err = infuse.NewGroup(cfg)
	require.NoError(t, err)
	t.Cleanup(s.group.Stop)
	backends := grpcinfuse.NewBackends(fmt.Sprintf("infuse_test_%d", policies.Add(1)), s.group, options...)
	balancer.Register(backends)
	s.conn, err = grpc.NewClient("test:///inventory", grpc.WithResolvers(s.resolver),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig": [{%q: {}}]%s}`, backends.Name(), retry)),
		grpc.WithChainUnaryInterceptor(backends.Unary),
		grpc.WithChainStreamInterceptor(backends.Stream))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.conn.Close() })
	s.TestServiceClient = testpb.NewTestServiceClient(s.conn)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s.ctx = ctx
	s.settle()
	return s
}

// settle waits until each backend has had a call.
func (s *several) settle() {
	s.t.Helper()
	for _, m := range s.backends {
		require.Eventually(s.t, func() bool {
			before := m.calls.Load()
			for range s.backends {
				require.NoError(s.t, s.call())
			}
			return m.calls.Load() > before
		}, patience, time.Millisecond)
	}
}

func (s *several) call() error {
	_, err := s.EmptyCall(s.ctx, new(testpb.Empty))
	return err
}

// breaker returns the breaker of a backend.
func (s *several) breaker(m *backend) *infuse.Breaker {
	s.t.Helper()
	b, err := s.group.Breaker("test:///inventory/" + m.address)
	require.NoError(s.t, err)
	return b
}

// setState sets the state of a backend's circuit.
func (s *several) setState(m *backend, to infuse.State) {
	s.t.Helper()
	require.NoError(s.t, s.breaker(m).SetState(s.ctx, to))
}

// With one circuit for the target, one failing backend of three blocked the healthy
// backends.
func TestUnhealthyBackendDoesNotBlockOthers(t *testing.T) {
	const open = 400 * time.Millisecond
	s := startSeveral(t, infuse.Config{ResetTimeout: open}, "")
	bad := s.backends[1]
	bad.unhealthy.Store(true)
	before := bad.calls.Load()
	var failed, served atomic.Int64
	began := time.Now()
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for time.Since(began) < 4*open || (served.Load() <= 100 || bad.calls.Load()-before < 3+2) && s.ctx.Err() == nil { // more time on a busy machine
				if err := s.call(); err != nil {
					failed.Add(1)
				} else {
					served.Add(1)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	callers.Wait()
	trials := int64(time.Since(began)/open) + 1
	sent := bad.calls.Load() - before
	t.Logf("%d calls served, %d failed; the unhealthy backend got %d, in the time of at most %d trials", served.Load(), failed.Load(), sent, trials)
	require.Equal(t, sent, failed.Load(), "only calls to the unhealthy backend failed")
	require.LessOrEqual(t, sent, 3+3+trials, "FailMax, calls in flight, and trials")
	require.GreaterOrEqual(t, sent, int64(3+2))
	require.Greater(t, served.Load(), int64(100))
	require.Equal(t, infuse.StateOpen, s.breaker(bad).State())
	for _, m := range []*backend{s.backends[0], s.backends[2]} {
		require.Equal(t, infuse.StateClosed, s.breaker(m).State())
		require.Zero(t, s.breaker(m).Stats().Calls.Failure)
	}

	bad.unhealthy.Store(false)
	require.Eventually(t, func() bool { require.NoError(t, s.call()); return s.breaker(bad).State() == infuse.StateClosed }, patience, time.Millisecond)
	before = bad.calls.Load()
	for range 30 {
		require.NoError(t, s.call())
	}
	require.EqualValues(t, 10, bad.calls.Load()-before, "the recovered backend gets its share again")
}

// Calls are so rare that no other call comes while a trial waits.
func TestFewCallsDetectRecoveredBackend(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Minute}, "")
	bad := s.backends[0]
	s.setState(bad, infuse.StateHalfOpen)
	before := bad.calls.Load()
	for range 3 {
		require.NoError(t, s.call())
	}
	require.Positive(t, bad.calls.Load()-before)
	require.Equal(t, infuse.StateClosed, s.breaker(bad).State())
}

func TestCallIsRejectedIfNoBackendAcceptsIt(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour}, "")
	for _, m := range s.backends {
		s.setState(m, infuse.StateOpen)
	}
	before := [3]int64{}
	for i, m := range s.backends {
		before[i] = m.calls.Load()
	}
	for range 10 {
		_, err := s.EmptyCall(s.ctx, new(testpb.Empty), grpc.WaitForReady(true))
		open := requireRejected(t, err)
		require.Contains(t, open.Circuit, "test:///inventory/127.0.0.1:")
		require.NotEmpty(t, status.Convert(err).Details())
		_, err = s.StreamingOutputCall(s.ctx, new(question))
		requireRejected(t, err)
	}
	var rejected uint64
	for i, m := range s.backends {
		require.Equal(t, before[i], m.calls.Load())
		rejected += s.breaker(m).Stats().Calls.Rejected
	}
	require.GreaterOrEqual(t, rejected, uint64(20))
	require.LessOrEqual(t, rejected, uint64(20+3), "one request a second and circuit")

	s.setState(s.backends[2], infuse.StateClosed)
	require.NoError(t, s.call())
}

// Many calls arrive while all circuits are half-open. None waits for the end of a trial.
func TestOnlyOneCallIsTheTrialOfABackend(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour}, "")
	for i, m := range s.backends {
		m.unhealthy.Store(true)
		to := infuse.StateOpen
		if i == 0 {
			to = infuse.StateHalfOpen
		}
		s.setState(m, to)
	}
	before := s.backends[0].calls.Load()
	var calls sync.WaitGroup
	var rejected atomic.Int64
	for range 50 {
		calls.Go(func() {
			if err := s.call(); status.Code(err) == codes.Unavailable && errors.Is(err, infuse.ErrOpen) {
				rejected.Add(1)
			}
		})
	}
	calls.Wait()
	require.EqualValues(t, 1, s.backends[0].calls.Load()-before)
	require.EqualValues(t, 49, rejected.Load())
	require.NoError(t, s.ctx.Err())
}

// gRPC retries at another backend, so the caller receives no error. The circuit of the
// failing backend still opens.
func TestAttemptsOfARetryCountForTheirBackends(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour}, `, "methodConfig": [{"name": [{}], "retryPolicy": {
		"maxAttempts": 3, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]`)
	bad := s.backends[2]
	bad.unhealthy.Store(true)
	require.Eventually(t, func() bool {
		require.NoError(t, s.call())
		return s.breaker(bad).State() == infuse.StateOpen
	}, patience, time.Millisecond)
	require.EqualValues(t, 3, s.breaker(bad).Stats().Calls.Failure)
	require.Zero(t, s.breaker(s.backends[0]).Stats().Calls.Failure)
}

func TestStreamEndsTheTrialOfItsBackendAtItsFirstMessage(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour}, "", grpcinfuse.EstablishedAfter(never))
	m := s.backends[0]
	s.setState(m, infuse.StateHalfOpen)
	for range 3 {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		from, err := s.StreamingOutputCall(ctx, new(question))
		require.NoError(t, err)
		_, err = from.Recv()
		require.NoError(t, err)
	}
	require.Equal(t, infuse.StateClosed, s.breaker(m).State())
}

func TestFailingStreamsOpenTheCircuitOfTheirBackend(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour}, "")
	bad := s.backends[1]
	bad.unhealthy.Store(true)
	before := bad.calls.Load()
	for range 30 {
		ctx, cancel := context.WithCancel(s.ctx)
		from, err := s.StreamingOutputCall(ctx, new(question))
		if err == nil {
			_, err = from.Recv()
		}
		require.NotErrorIs(t, err, io.EOF)
		cancel()
	}
	require.EqualValues(t, 3, bad.calls.Load()-before)
	require.Equal(t, infuse.StateOpen, s.breaker(bad).State())
}

// slowStorage replies late if late is set: when released.
type slowStorage struct {
	infuse.Storage
	late    atomic.Bool
	asked   chan struct{}
	release chan struct{}
}

func (s *slowStorage) wait(ctx context.Context) {
	if !s.late.Load() {
		return
	}
	select {
	case s.asked <- struct{}{}:
	default:
	}
	select {
	case <-ctx.Done():
	case <-s.release:
	}
}

func (s *slowStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	s.wait(ctx)
	return s.Storage.Apply(ctx, circuit, c)
}

func (s *slowStorage) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	s.wait(ctx)
	return s.Storage.Load(ctx, circuit)
}

// The storage takes long to grant the trial of one backend. Only one call waits for it.
func TestCallsDoNotWaitForOtherTrials(t *testing.T) {
	storage := &slowStorage{Storage: infuse.NewMemoryStorage(), asked: make(chan struct{}, 1), release: make(chan struct{})}
	s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour, Storage: storage, StorageTimeout: patience}, "")
	s.setState(s.backends[0], infuse.StateHalfOpen)
	storage.late.Store(true)
	first := make(chan error, 3)
	for range 3 { // one has its turn at the backend
		go func() { first <- s.call() }()
	}
	<-storage.asked
	began := time.Now()
	for range 30 {
		require.NoError(t, s.call())
	}
	for range 2 {
		require.NoError(t, <-first)
	}
	require.Less(t, time.Since(began), 3*time.Second, "a call waited for the storage, which takes 5 s at most")
	close(storage.release)
	<-first
}

func TestPolicyRequiresItsInterceptors(t *testing.T) {
	_, address := serve(t, &service{unary: healthy}, "127.0.0.1:0")
	backends := grpcinfuse.NewBackends("infuse_test_alone", nil)
	balancer.Register(backends)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"infuse_test_alone": {}}]}`))
	require.NoError(t, err)
	defer conn.Close()
	_, err = testpb.NewTestServiceClient(conn).EmptyCall(t.Context(), new(testpb.Empty))
	require.Equal(t, codes.Internal, status.Code(err))
	require.ErrorContains(t, err, "requires its interceptors")
}

func TestBackendWithEmptyNameHasNoCircuit(t *testing.T) {
	s := startSeveral(t, infuse.Config{}, "", grpcinfuse.WithCircuit(func(context.Context, string, string) string { return "" }))
	s.backends[0].unhealthy.Store(true)
	before := s.backends[0].calls.Load()
	for range 30 {
		_ = s.call()
	}
	require.EqualValues(t, 10, s.backends[0].calls.Load()-before)
}

// Calls, trials, manual changes and changes of the addresses are concurrent. All calls
// return.
func TestConcurrentCallsWhileBackendsChange(t *testing.T) {
	s := startSeveral(t, infuse.Config{ResetTimeout: 5 * time.Millisecond}, "")
	var all sync.WaitGroup
	stop := make(chan struct{})
	all.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			m := s.backends[i%3]
			m.unhealthy.Store(!m.unhealthy.Load())
			s.setState(s.backends[(i/3)%3], infuse.State(i%3))
			var some []resolver.Endpoint
			for k, m := range s.backends {
				if k != i%4 {
					some = append(some, resolver.Endpoint{Addresses: []resolver.Address{{Addr: m.address}}})
				}
			}
			s.resolver.UpdateState(resolver.State{Endpoints: some})
		}
	})
	var calls sync.WaitGroup
	for i := range 6 {
		calls.Go(func() {
			for range 200 {
				ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
				var err error
				if i%3 == 0 {
					var from grpc.ServerStreamingClient[output]
					if from, err = s.StreamingOutputCall(ctx, new(question)); err == nil {
						_, err = from.Recv()
					}
				} else {
					_, err = s.EmptyCall(ctx, new(testpb.Empty))
				}
				require.NotEqual(t, codes.DeadlineExceeded, status.Code(err))
				cancel()
			}
		})
	}
	calls.Wait()
	close(stop)
	all.Wait()
}

// The permit was acquired with another context than that of the call.
func TestCallerCancelsTheTrialOfABackend(t *testing.T) {
	for slowCall, want := range map[time.Duration]infuse.State{0: infuse.StateHalfOpen, soon: infuse.StateOpen} {
		s := startSeveral(t, infuse.Config{ResetTimeout: time.Hour, SlowCall: slowCall}, "")
		for _, m := range s.backends {
			s.setState(m, infuse.StateOpen)
		}
		m := s.backends[0]
		s.setState(m, infuse.StateHalfOpen)
		m.hangs.Store(true)
		before := m.calls.Load()
		ctx, cancel := context.WithCancel(s.ctx)
		go func() {
			for m.calls.Load() == before {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(2 * soon)
			cancel()
		}()
		_, err := s.EmptyCall(ctx, new(testpb.Empty))
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Equal(t, want, s.breaker(m).State(), "SlowCall %v", slowCall)
	}
}
