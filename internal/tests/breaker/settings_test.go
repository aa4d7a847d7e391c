package breaker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Hosts whose clocks differed by minutes opened and closed the shared circuit
// under each other. Here one host's clock is a quarter of a century behind, and
// stands still while it talks to Redis.
// R40.
func TestHostsWhoseClocksDifferBehaveTheSame(t *testing.T) {
	server := redistest.Start(t)
	cfg := patiently(infuse.Config{ResetTimeout: time.Hour})
	breaker := func(t *testing.T, storage infuse.Storage) *infuse.Breaker {
		cfg := cfg
		cfg.Storage = storage
		return startBreaker(t, "prices", cfg)
	}
	between59And60Minutes := func(b *infuse.Breaker) {
		left := b.Call(context.Background(), succeeds).(*infuse.OpenError).RetryAfter()
		assert.Greater(t, left, 59*time.Minute)
		assert.LessOrEqual(t, left, time.Hour+time.Millisecond, "times on record are rounded up")
	}
	here := breaker(t, host(t, server))
	onThisHost := elsewhere(t)

	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, 2000, time.Now().Year())
		storage := host(t, server)
		there := breaker(t, storage)
		require.NoError(t, there.SetState(t.Context(), infuse.StateOpen))
		between59And60Minutes(there)
		require.Equal(t, 2000, recordOf(t, there).DueAt.Year())
		onThisHost(func() {
			eventuallyState(t, infuse.StateOpen, here)
			between59And60Minutes(here)
			left := time.Until(recordOf(t, here).DueAt)
			assert.Greater(t, left, 59*time.Minute)
			assert.NoError(t, here.SetState(context.Background(), infuse.StateClosed))
			assert.NoError(t, here.SetState(context.Background(), infuse.StateOpen))
		})
		between59And60Minutes(breaker(t, storage))
	})
}

// is called, and waits for it.
func elsewhere(t *testing.T) func(func()) {
	orders, done := make(chan func()), make(chan struct{})
	t.Cleanup(func() { close(orders) })
	go func() {
		for do := range orders {
			go func() {
				defer func() { done <- struct{}{} }() // also where a require ends it
				do()
			}()
		}
	}()
	return func(do func()) {
		orders <- do
		<-done
	}
}

// A timeout of 250 ms was cut to whole seconds, and so was
// anything from nothing to a second.
func TestAResetTimeoutOf250MillisecondsIsThat(t *testing.T) {
	t.Parallel()
	const resetTimeout = 250 * time.Millisecond
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := startBreaker(t, "prices", infuse.Config{ResetTimeout: resetTimeout})
			trip(t, b)
			time.Sleep(resetTimeout - time.Nanosecond)
			synctest.Wait()
			requireRejected(t, b)
			time.Sleep(time.Nanosecond)
			require.NoError(t, b.Call(t.Context(), succeeds))
		})
	})
	t.Run("redis", func(t *testing.T) {
		server := redistest.Start(t)
		b := startBreaker(t, "prices", patiently(infuse.Config{ResetTimeout: resetTimeout, Storage: host(t, server)}))
		var took []time.Duration
		for range 7 {
			began := time.Now()
			trip(t, b)
			for b.Call(t.Context(), succeeds) != nil {
				time.Sleep(time.Millisecond)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("open for %v: min %v, p50 %v, max %v", resetTimeout, took[0], took[len(took)/2], took[len(took)-1])
		require.GreaterOrEqual(t, took[0], resetTimeout-time.Millisecond)
		require.Less(t, took[len(took)/2], 3*resetTimeout) // less than a second
	})
}

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
	"StorageDown unknown":         {infuse.Config{StorageDown: 9}, []string{"StorageDown", "9"}},
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

// R42.
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
					require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
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
func TestStrangeNamesReceiveOnlyTheirOwnChanges(t *testing.T) {
	server := redistest.Start(t)
	here, there := host(t, server), host(t, server)
	var watching []*infuse.Breaker
	for _, name := range strangeNames {
		watching = append(watching, startBreaker(t, name, patiently(infuse.Config{Storage: here})))
	}
	for i, name := range strangeNames {
		moved := startBreaker(t, name, patiently(infuse.Config{Storage: there}))
		require.NoError(t, moved.SetState(t.Context(), infuse.StateOpen))
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
	require.Equal(t, "local allow reject StorageDownPolicy(3)", fmt.Sprint(
		infuse.StorageDownLocal, infuse.StorageDownAllow, infuse.StorageDownReject, infuse.StorageDownPolicy(3)))
}

func TestEveryInvalidFieldIsNamedAtOnce(t *testing.T) {
	_, err := infuse.New("inventory", infuse.Config{FailMax: -1, ResetTimeout: -time.Second, StorageDown: 9})
	require.ErrorContains(t, err, "Config.FailMax is -1")
	require.ErrorContains(t, err, "Config.ResetTimeout is -1s")
	require.ErrorContains(t, err, "Config.StorageDown is StorageDownPolicy(9)")
}

// Settings have every field of Config that is plain data, under the same name.
func TestSettingsHaveEveryPlainField(t *testing.T) {
	notPlain := map[string]bool{"Exclude": true, "Classify": true, "Storage": true, "Listeners": true}
	settings := reflect.TypeFor[infuse.Settings]()
	for _, field := range reflect.VisibleFields(reflect.TypeFor[infuse.Config]()) {
		_, has := settings.FieldByName(field.Name)
		require.Equal(t, !notPlain[field.Name], has, field.Name)
	}
	// Each one arrives.
	for i := range settings.NumField() {
		var s infuse.Settings
		value := reflect.ValueOf(&s).Elem().Field(i)
		switch value.Kind() {
		case reflect.Bool:
			value.SetBool(true)
		case reflect.String:
			value.SetString("x")
		case reflect.Float64:
			value.SetFloat(0.5)
		case reflect.Uint8:
			value.SetUint(1)
		default:
			value.SetInt(7)
		}
		name := settings.Field(i).Name
		require.False(t, reflect.ValueOf(s.Config()).FieldByName(name).IsZero(), name)
	}
}

func TestSettingsAreReadFromText(t *testing.T) {
	text := `{"failMax":3,"resetTimeout":"1m30s","storageDown":"reject","dryRun":true,"failureRate":0.5,"maxRetryAfter":"-1s"}`
	var s infuse.Settings
	require.NoError(t, json.Unmarshal([]byte(text), &s))
	cfg := s.Config()
	require.Equal(t, infuse.Config{FailMax: 3, ResetTimeout: 90 * time.Second, StorageDown: infuse.StorageDownReject, DryRun: true, FailureRate: 0.5, MaxRetryAfter: -time.Second}, cfg)
	require.NoError(t, cfg.Validate())
	back, err := json.Marshal(s)
	require.NoError(t, err)
	require.JSONEq(t, text, string(back))
	empty, err := json.Marshal(infuse.Settings{})
	require.NoError(t, err)
	require.JSONEq(t, `{}`, string(empty))

	for _, bad := range []string{`{"resetTimeout":"90"}`, `{"resetTimeout":90}`, `{"storageDown":"closed"}`, `{"storageDown":1}`} {
		require.Error(t, json.Unmarshal([]byte(bad), &s), bad)
	}
	require.ErrorContains(t, json.Unmarshal([]byte(`{"storageDown":"closed"}`), &s), `"closed" is not "local", "allow" or "reject"`)
}

func TestValidateNamesFieldAndValue(t *testing.T) {
	err := infuse.Config{FailMax: -3, FailureRate: 2}.Validate()
	require.ErrorContains(t, err, "Config.FailMax is -3")
	require.ErrorContains(t, err, "Config.FailureRate is 2")
	require.NoError(t, infuse.Config{}.Validate())
}

func TestReloadAsksTheFuncAgain(t *testing.T) {
	settings := map[string]infuse.Settings{"": {FailMax: 5}, "prices": {FailMax: 5}}
	g, err := infuse.NewGroupFunc(func(circuit string) infuse.Config {
		s, named := settings[circuit]
		if !named {
			s = settings[""]
		}
		return s.Config()
	})
	require.NoError(t, err)
	t.Cleanup(g.Stop)
	b := breakerOf(t, g, "prices")
	settings["prices"] = infuse.Settings{FailMax: 1}
	require.NoError(t, g.Reload())
	require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
	require.Equal(t, infuse.StateOpen, b.State())
	settings["prices"] = infuse.Settings{FailMax: -1}
	require.ErrorContains(t, g.Reload(), `circuit "prices"`)
	plain, err := infuse.NewGroup(infuse.Config{})
	require.NoError(t, err)
	t.Cleanup(plain.Stop)
	require.ErrorContains(t, plain.Reload(), "Configure")
}
