package integrations_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/examples/integrations"
)

func TestSettingsFromYAML(t *testing.T) {
	settings := new(integrations.Settings)
	require.NoError(t, settings.Read([]byte("prices:\n  failMax: 2\n  resetTimeout: 30s\n  storageDown: reject\n")))
	require.Equal(t, infuse.Config{FailMax: 2, ResetTimeout: 30 * time.Second, StorageDown: infuse.StorageDownReject}, settings.Config("prices"))
	require.Equal(t, infuse.Config{}, settings.Config("inventory"))

	breakers, err := infuse.NewGroupFunc(settings.Config)
	require.NoError(t, err)
	defer breakers.Stop()
	prices, err := breakers.Breaker("prices")
	require.NoError(t, err)
	require.NoError(t, settings.Read([]byte("prices: {dryRun: true}")))
	require.NoError(t, breakers.Reload())
	require.True(t, prices.Stats().DryRun)

	require.ErrorContains(t, settings.Read([]byte("prices: {resetTimeout: 30}")), "duration")
	require.NoError(t, settings.Read([]byte("prices: {failMax: -1}")))
	require.ErrorContains(t, breakers.Reload(), "Config.FailMax is -1")
	require.True(t, prices.Stats().DryRun, "the settings have not changed")
}
