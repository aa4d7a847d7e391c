package grpcinfuse_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/grpcinfuse"
)

func Example() {
	breakers, err := infuse.NewGroup(infuse.Config{FailMax: 3}) // with a Storage, a fleet shares the circuits
	if err != nil {
		panic(err)
	}
	defer breakers.Stop()
	calls := grpcinfuse.New(breakers)
	conn, err := grpc.NewClient("127.0.0.1:1", // no server listens here
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(calls.Unary),
		grpc.WithChainStreamInterceptor(calls.Stream))
	if err != nil {
		panic(err)
	}
	defer conn.Close()

	client := grpc_health_v1.NewHealthClient(conn)
	for range 4 {
		_, err = client.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		fmt.Println(errors.Is(err, infuse.ErrOpen))
	}
	var open *infuse.OpenError
	if errors.As(err, &open) {
		fmt.Println(open.Circuit, open.RetryAfter().Round(time.Second))
	}
	// Output:
	// false
	// false
	// false
	// true
	// 127.0.0.1:1 1m0s
}

func ExampleWithCircuit() {
	calls := grpcinfuse.New(nil, grpcinfuse.WithCircuit(func(_ context.Context, target, method string) string {
		if method == grpc_health_v1.Health_Check_FullMethodName {
			return "" // bypasses the breakers
		}
		return target
	}))
	_ = []grpc.DialOption{grpc.WithChainUnaryInterceptor(calls.Unary), grpc.WithChainStreamInterceptor(calls.Stream)}
}

func ExampleWithFailures() {
	grpcinfuse.New(nil, grpcinfuse.WithFailures(codes.Unavailable, codes.DeadlineExceeded))
}
