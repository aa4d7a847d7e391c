package connectinfuse_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/connectinfuse"
)

func Example() {
	breakers, err := infuse.NewGroup(infuse.Config{FailMax: 3}) // with a Storage, a fleet shares the circuits
	if err != nil {
		panic(err)
	}
	defer breakers.Stop()
	client := connect.NewClient[emptypb.Empty, emptypb.Empty](http.DefaultClient,
		"http://127.0.0.1:1/test.Test/Call", // no server listens here
		connect.WithInterceptors(connectinfuse.New(breakers)))

	for range 4 {
		_, err = client.CallUnary(context.Background(), connect.NewRequest(new(emptypb.Empty)))
		fmt.Println(connect.CodeOf(err), errors.Is(err, infuse.ErrOpen))
	}
	var open *infuse.OpenError
	if errors.As(err, &open) {
		fmt.Println(open.Circuit, open.RetryAfter().Round(time.Second))
	}
	// Output:
	// unavailable false
	// unavailable false
	// unavailable false
	// unavailable true
	// 127.0.0.1:1 1m0s
}

func ExampleWithCircuit() {
	interceptor := connectinfuse.New(nil, connectinfuse.WithCircuit(func(_ context.Context, target, procedure string) string {
		if procedure == "/grpc.health.v1.Health/Check" {
			return "" // bypasses the breakers
		}
		return target
	}))
	_ = connect.WithInterceptors(interceptor)
}

func ExampleWithFailures() {
	connectinfuse.New(nil, connectinfuse.WithFailures(connect.CodeUnavailable, connect.CodeDeadlineExceeded))
}
