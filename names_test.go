package infuse_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

func TestALoopbackHostThatIsSharedIsAMistake(t *testing.T) {
	for name, loopback := range map[string]bool{
		"localhost": true, "LOCALHOST:8080": true, "127.0.0.1:80": true, "127.9.9.9": true, "[::1]:8080": true, "[::1]": true, "::1": true,
		"[::ffff:127.0.0.1]:80": true, "inventory": false, "10.0.0.1": false, "localhost.example.com": false, "127.0.0.1.nip.io": false,
	} {
		for storage, shared := range map[infuse.Storage]bool{nil: false, infuse.NewMemoryStorage(): false, newRemote(): true} {
			var warnings []error
			listener := &infuse.Listener{Warning: func(_ *infuse.Breaker, err error) { warnings = append(warnings, err) }}
			startBreaker(t, name, infuse.Config{Storage: storage, Listeners: []*infuse.Listener{listener}})
			if loopback && shared {
				require.Len(t, warnings, 1, name)
				require.ErrorContains(t, warnings[0], "loopback")
			} else {
				require.Empty(t, warnings, name)
			}
		}
	}
	var text strings.Builder
	startBreaker(t, "localhost:80", infuse.Config{Storage: newRemote(), Listeners: []*infuse.Listener{infuse.LogListener(slog.New(slog.NewTextHandler(&text, nil)))}})
	require.Contains(t, text.String(), `level=WARN msg="circuit warning" circuit=localhost:80`)
}
