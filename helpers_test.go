package infuse_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience  = breakertest.Patience
	pace      = breakertest.Pace
	suspicion = breakertest.Suspicion
)

var (
	errUnhealthy    = breakertest.ErrUnhealthy
	succeeds        = breakertest.Succeeds
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	patiently       = breakertest.Patiently
	trip            = breakertest.Trip
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	eventuallyState = breakertest.EventuallyState
	recordOf        = breakertest.RecordOf
	storages        = breakertest.Storages
	failuresOf      = breakertest.FailuresOf
	everyCall       = breakertest.EveryCall
	allocations     = breakertest.Allocations
	waitUntilDue    = breakertest.WaitUntilDue
)

type (
	stateLog = breakertest.StateLog
	troubled = breakertest.Troubled
)

func TestMain(m *testing.M) {
	code := redistest.Run(m)
	if !infuse.SharedIsUntouched() {
		fmt.Println("FAIL: a circuit has written to what all healthy circuits share")
		code = 1
	}
	os.Exit(code)
}
