package breaker_test

import (
	"os"
	"testing"

	"github.com/infuse-go/infuse/internal/breakertest"
	"github.com/infuse-go/infuse/internal/redistest"
)

const (
	patience = breakertest.Patience
	pace     = breakertest.Pace
)

var (
	errUnhealthy    = breakertest.ErrUnhealthy
	succeeds        = breakertest.Succeeds
	fails           = breakertest.Fails
	startBreaker    = breakertest.Start
	host            = breakertest.Host
	patiently       = breakertest.Patiently
	split           = breakertest.Split
	trip            = breakertest.Trip
	tripFleet       = breakertest.TripFleet
	requireRejected = breakertest.RequireRejected
	requireTrial    = breakertest.RequireTrial
	requireState    = breakertest.RequireState
	eventuallyState = breakertest.EventuallyState
	recordOf        = breakertest.RecordOf
	storages        = breakertest.Storages
	groupOf         = breakertest.Group
	breakerOf       = breakertest.Of
	failuresOf      = breakertest.FailuresOf
	outcomes        = breakertest.Outcomes
	ran             = breakertest.Ran
	everyCall       = breakertest.EveryCall
	late            = breakertest.Late
	apart           = breakertest.Apart
	passSuspicion   = breakertest.PassSuspicion
	allocations     = breakertest.Allocations
	underRace       = breakertest.UnderRace
	waitUntilDue    = breakertest.WaitUntilDue
	callOf          = breakertest.CallOf
	errTroubled     = breakertest.ErrTroubled
)

type (
	stateLog = breakertest.StateLog
	troubled = breakertest.Troubled
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }
