package integrations_test

// This file tests connect-go.

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/infuse-go/infuse"
)

type empty = emptypb.Empty

// An unavailable service returns its error in a response with status 200 in gRPC, in
// gRPC-Web and in streams of Connect. Its circuit never opened.
func TestConnectGo(t *testing.T) {
	down := connect.NewError(connect.CodeUnavailable, nil)
	mux := http.NewServeMux()
	mux.Handle("/unary", connect.NewUnaryHandler("/unary", func(context.Context, *connect.Request[empty]) (*connect.Response[empty], error) {
		return nil, down
	}))
	mux.Handle("/stream", connect.NewServerStreamHandler("/stream", func(_ context.Context, _ *connect.Request[empty], s *connect.ServerStream[empty]) error {
		if err := s.Send(new(empty)); err != nil {
			return err
		}
		return down
	}))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)

	for name, options := range map[string][]connect.ClientOption{
		"Connect":         nil,
		"Connect in JSON": {connect.WithProtoJSON()},
		"gRPC":            {connect.WithGRPC()},
		"gRPC-Web":        {connect.WithGRPCWeb()},
	} {
		for _, path := range []string{"/unary", "/stream"} {
			t.Run(name+path, func(t *testing.T) {
				group, err := infuse.NewGroup(infuse.Config{FailMax: 3, ResetTimeout: time.Hour})
				require.NoError(t, err)
				t.Cleanup(group.Stop)
				transport := &infuse.Transport{Base: server.Client().Transport, Breakers: group, Classify: infuse.GRPCStatus}
				client := connect.NewClient[empty, empty](&http.Client{Transport: transport}, server.URL+path, options...)
				call := func() error {
					if path == "/unary" {
						_, err := client.CallUnary(t.Context(), connect.NewRequest(new(empty)))
						return err
					}
					stream, err := client.CallServerStream(t.Context(), connect.NewRequest(new(empty)))
					if err != nil {
						return err
					}
					for stream.Receive() {
					}
					_ = stream.Close()
					return stream.Err()
				}
				for range 3 {
					err := call()
					require.Equal(t, connect.CodeUnavailable, connect.CodeOf(err))
					require.NotErrorIs(t, err, infuse.ErrOpen)
				}
				require.ErrorIs(t, call(), infuse.ErrOpen)
			})
		}
	}
}
