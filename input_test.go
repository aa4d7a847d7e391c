package infuse_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Bad input is an error that says what is wrong with which value.

var badConfigs = map[string]struct {
	config infuse.Config
	says   []string
}{
	"FailMax below zero":          {infuse.Config{FailMax: -1}, []string{"FailMax", "-1"}},
	"FailMax too large":           {infuse.Config{FailMax: math.MaxInt32 + 1}, []string{"FailMax", "2147483648"}},
	"ResetTimeout below zero":     {infuse.Config{ResetTimeout: -time.Second}, []string{"ResetTimeout", "-1s"}},
	"ResetTimeout too short":      {infuse.Config{ResetTimeout: time.Microsecond}, []string{"ResetTimeout", "1µs"}},
	"ResetTimeout too long":       {infuse.Config{ResetTimeout: math.MaxInt64}, []string{"ResetTimeout", "2562047h47m16.854775807s"}},
	"SuccessThreshold below zero": {infuse.Config{SuccessThreshold: -3}, []string{"SuccessThreshold", "-3"}},
	"MaxTrials below zero":        {infuse.Config{MaxTrials: -2}, []string{"MaxTrials", "-2"}},
	"MaxTrials too large":         {infuse.Config{MaxTrials: 1025}, []string{"MaxTrials", "1025"}},
	"TrialTimeout below zero":     {infuse.Config{TrialTimeout: -time.Minute}, []string{"TrialTimeout", "-1m0s"}},
	"TrialTimeout too short":      {infuse.Config{TrialTimeout: 999 * time.Microsecond}, []string{"TrialTimeout", "999µs"}},
	"StorageTimeout below zero":   {infuse.Config{StorageTimeout: -time.Millisecond}, []string{"StorageTimeout", "-1ms"}},
	"Fallback unknown":            {infuse.Config{Fallback: 9}, []string{"Fallback", "9"}},
	"Exclude with a nil func": {
		infuse.Config{Exclude: []func(error) bool{func(error) bool { return false }, nil}},
		[]string{"Exclude[1]", "nil"},
	},
	"Listeners with a nil":   {infuse.Config{Listeners: []*infuse.Listener{nil}}, []string{"Listeners[0]", "nil"}},
	"MaxCircuits below zero": {infuse.Config{MaxCircuits: -7}, []string{"MaxCircuits", "-7"}},
	"Storage without a client": {
		infuse.Config{Storage: infuse.NewRedisStorage(nil, infuse.RedisOptions{})},
		[]string{"Storage", "client", "nil"},
	},
	"Storage with a bad poll": {
		infuse.Config{Storage: infuse.NewRedisStorage(nil, infuse.RedisOptions{PollInterval: -time.Second})},
		[]string{"Storage", "PollInterval", "-1s"},
	},
}

func TestABadConfigIsAnErrorThatNamesFieldAndValue(t *testing.T) {
	good, err := infuse.New("prices", infuse.Config{})
	require.NoError(t, err)
	defer good.Stop()
	for name, bad := range badConfigs {
		t.Run(name, func(t *testing.T) {
			_, newErr := infuse.New("prices", bad.config)
			_, groupErr := infuse.NewGroup(bad.config)
			for who, err := range map[string]error{"New": newErr, "NewGroup": groupErr, "Configure": good.Configure(bad.config)} {
				require.Error(t, err, who)
				require.True(t, strings.HasPrefix(err.Error(), "infuse: "), "%s says %q", who, err)
				for _, words := range bad.says {
					require.ErrorContains(t, err, words, who)
				}
			}
		})
	}
	require.NoError(t, good.Call(t.Context(), succeeds), "a Config that was refused changes nothing")
}

func TestABadNameIsAnError(t *testing.T) {
	group, err := infuse.NewGroup(infuse.Config{})
	require.NoError(t, err)
	defer group.Stop()
	storage := infuse.NewMemoryStorage()
	for says, name := range map[string]string{
		"empty":     "",
		"257 bytes": strings.Repeat("é", 128) + "e",
	} {
		_, err := infuse.New(name, infuse.Config{})
		require.ErrorContains(t, err, says)
		_, err = group.Breaker(name)
		require.ErrorContains(t, err, says)
		require.ErrorContains(t, infuse.CheckName(name), says)
		require.ErrorContains(t, infuse.Announce(t.Context(), storage, name, infuse.StateHalfOpen), says)
	}
	longest := strings.Repeat("n", infuse.MaxNameLength)
	require.Equal(t, longest, startBreaker(t, longest, infuse.Config{}).Name())
}

func TestAnnounceRefusesWhatItCannotDo(t *testing.T) {
	require.ErrorContains(t, infuse.Announce(t.Context(), nil, "prices", infuse.StateClosed), "nil")
	require.ErrorContains(t, infuse.Announce(t.Context(), infuse.NewMemoryStorage(), "prices", 7), "State(7)")
}

// strangeNames are names that a careless key would mistake for each other.
var strangeNames = []string{
	"a", "A", " a", "a ", "a b", "a+b", "a%20b", "a\tb", "a\nb", "a\r\nb", "a\x00b", "a,b", "a=b",
	"{", "}", "{}", "{a}", "{a", "a}", "a}{b", "{a}{b}", "%7Ba%7D", "a:b", "a*", "a?", "[a]",
	"é", "e\u0301", "\xff", "\xfe", "%FF", "a/b", "../a", "*",
}

func TestNamesNeverMeet(t *testing.T) {
	server := redistest.Start(t)
	for kind, storage := range map[string]infuse.Storage{
		"memory": infuse.NewMemoryStorage(),
		"redis":  host(t, server),
	} {
		t.Run(kind, func(t *testing.T) {
			cfg := patiently(infuse.Config{FailMax: 1000, Storage: storage})
			for i, name := range strangeNames {
				b := startBreaker(t, name, cfg)
				for range i + 1 {
					require.Equal(t, errIll, b.Call(t.Context(), fails))
				}
			}
			for i, name := range strangeNames {
				require.Equal(t, i+1, recordOf(t, startBreaker(t, name, cfg)).Failures, "%q", name)
			}
		})
	}
	keys, err := server.Client().Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Len(t, keys, len(strangeNames))
	for _, key := range keys {
		require.Regexp(t, `^infuse:\{[A-Za-z0-9%+._~-]+\}$`, key, "no name leaves its hash tag")
	}
}

// The prefix and the names are one namespace for Pub/Sub, too: what happens to
// one circuit is no news for another.
func TestStrangeNamesHearOnlyOfThemselves(t *testing.T) {
	server := redistest.Start(t)
	here, there := host(t, server), host(t, server)
	var watching []*infuse.Breaker
	for _, name := range strangeNames {
		watching = append(watching, startBreaker(t, name, patiently(infuse.Config{Storage: here})))
	}
	for i, name := range strangeNames {
		moved := startBreaker(t, name, patiently(infuse.Config{Storage: there}))
		require.NoError(t, moved.Move(t.Context(), infuse.StateOpen))
		eventuallyState(t, infuse.StateOpen, watching[i])
		requireState(t, infuse.StateClosed, watching[i+1:]...)
	}
}

func TestConfigureRefusesAnotherStorage(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	b := startBreaker(t, "prices", infuse.Config{Storage: storage})
	require.NoError(t, b.Configure(infuse.Config{Storage: storage, FailMax: 1}))
	require.NoError(t, b.Configure(infuse.Config{FailMax: 1}))
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: infuse.NewMemoryStorage()}), "Storage")
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: unhashable{}}), "Storage")
}

// unhashable cannot be compared: == on it panics.
type unhashable struct{ _ []int }

func (unhashable) Load(context.Context, string) (infuse.Record, error) {
	return infuse.Record{}, errors.ErrUnsupported
}

func (unhashable) Apply(context.Context, string, infuse.Change) (infuse.Record, infuse.Verdict, error) {
	return infuse.Record{}, infuse.VerdictRefused, errors.ErrUnsupported
}

func (unhashable) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

func TestTheNumbersPrintAsWords(t *testing.T) {
	require.Equal(t, "closed open half-open State(3)", fmt.Sprint(
		infuse.StateClosed, infuse.StateOpen, infuse.StateHalfOpen, infuse.State(3)))
	require.Equal(t, "success failure ignored Outcome(3)", fmt.Sprint(
		infuse.OutcomeSuccess, infuse.OutcomeFailure, infuse.OutcomeIgnored, infuse.Outcome(3)))
	require.Equal(t, "local closed open Fallback(3)", fmt.Sprint(
		infuse.FallbackLocal, infuse.FallbackClosed, infuse.FallbackOpen, infuse.Fallback(3)))
}

func TestEveryInvalidFieldIsNamedAtOnce(t *testing.T) {
	_, err := infuse.New("inventory", infuse.Config{FailMax: -1, ResetTimeout: -time.Second, Fallback: 9})
	require.ErrorContains(t, err, "Config.FailMax is -1")
	require.ErrorContains(t, err, "Config.ResetTimeout is -1s")
	require.ErrorContains(t, err, "Config.Fallback is Fallback(9)")
}
