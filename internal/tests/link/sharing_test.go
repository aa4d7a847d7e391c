package link_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// Each breaker that New made on a hanging storage found out by itself: 4 times
// 96 ms.
func TestBreakersThatAreMadeOneByOneShareALink(t *testing.T) {
	for name, wrap := range map[string]func(r *remote) infuse.Storage{
		"a pointer": func(r *remote) infuse.Storage { return r },
		"a value":   func(r *remote) infuse.Storage { return silent{r} },
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, func(t *testing.T) {
				r := newRemote()
				r.suffer(r.hang)
				defer r.recover()
				began := time.Now()
				for i := range 4 {
					startBreaker(t, fmt.Sprint(i), infuse.Config{Storage: wrap(r)})
				}
				require.LessOrEqual(t, time.Since(began), storageTimeout)
			})
		})
	}
}

func TestATypedNilIsNoStorage(t *testing.T) {
	for _, s := range []infuse.Storage{(*infuse.RedisStorage)(nil), (*infuse.MemoryStorage)(nil), (*remote)(nil), together(nil)} {
		_, err := infuse.New("prices", infuse.Config{Storage: s})
		require.ErrorContains(t, err, fmt.Sprintf("infuse: Config.Storage is a nil %T", s))
		_, err = infuse.NewGroup(infuse.Config{Storage: s})
		require.ErrorContains(t, err, "Config.Storage")
		require.Error(t, infuse.Announce(t.Context(), s, "prices", infuse.StateOpen))
	}
	b := startBreaker(t, "prices", infuse.Config{})
	require.ErrorContains(t, b.Configure(infuse.Config{Storage: (*infuse.RedisStorage)(nil)}), "Config.Storage")
}

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

// together is a storage that cannot be compared.
type together []infuse.Storage

func (s together) Load(ctx context.Context, circuit string) (infuse.Record, error) {
	return s[0].Load(ctx, circuit)
}

func (s together) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	return s[0].Apply(ctx, circuit, c)
}

func (s together) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	return s[0].Watch(circuit, fn)
}
