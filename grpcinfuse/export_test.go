package grpcinfuse

// This file exports internals to the tests.

import (
	"time"

	"github.com/infuse-go/infuse/internal/rpc"
)

// EstablishedAfter sets the time after which a stream is established.
func EstablishedAfter(d time.Duration) Option { return func(s *settings) { s.establishedAfter = d } }

// NameOf is nameOf.
func NameOf(target string) string { return nameOf(target) }

// DefaultEstablishedAfter is the default of EstablishedAfter.
const DefaultEstablishedAfter = rpc.EstablishedAfter
