package grpcinfuse

import (
	"time"

	"github.com/infuse-go/infuse/internal/rpc"
)

// EstablishedAfter has a stream be established sooner or later.
func EstablishedAfter(d time.Duration) Option { return func(s *settings) { s.establishedAfter = d } }

// NameOf is the name of a canonical target.
func NameOf(target string) string { return nameOf(target) }

// DefaultEstablishedAfter is how long a stream must live by default.
const DefaultEstablishedAfter = rpc.EstablishedAfter
