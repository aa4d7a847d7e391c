package infuse_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

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
