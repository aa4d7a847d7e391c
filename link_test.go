package infuse_test

import (
	"math"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// together is a storage that cannot be compared.
type together struct {
	infuse.Storage
	others []infuse.Storage
}

// silent is a storage that notifies nobody.
type silent struct{ infuse.Storage }

func (silent) Watch(string, func(infuse.Record)) (stop func()) { return func() {} }

// unequal is a storage that does not equal itself.
type unequal struct {
	infuse.Storage
	number float64
}

// A map of the links held every storage, and all that it refers to, for good.
func TestALinkGoesWithItsLastCircuit(t *testing.T) {
	storages := map[string]func() infuse.Storage{
		"memory":              func() infuse.Storage { return infuse.NewMemoryStorage() },
		"the zero value":      func() infuse.Storage { return &infuse.MemoryStorage{} },
		"a pointer":           func() infuse.Storage { return &troubled{Storage: infuse.NewMemoryStorage()} },
		"a value":             func() infuse.Storage { return silent{infuse.NewMemoryStorage()} },
		"not comparable":      func() infuse.Storage { return together{infuse.NewMemoryStorage(), nil} },
		"holds no comparable": func() infuse.Storage { return silent{together{infuse.NewMemoryStorage(), nil}} },
		"not equal to itself": func() infuse.Storage { return unequal{infuse.NewMemoryStorage(), math.NaN()} },
		"unavailable": func() infuse.Storage {
			s := &troubled{Storage: infuse.NewMemoryStorage()}
			s.Down.Store(true)
			return s
		},
	}
	for name, storage := range storages {
		t.Run(name, func(t *testing.T) {
			for range 10 {
				cfg := infuse.Config{Storage: storage()}
				group, err := infuse.NewGroup(cfg)
				require.NoError(t, err)
				one, err := group.Breaker("one")
				require.NoError(t, err)
				other, err := infuse.New("other", cfg)
				require.NoError(t, err)
				_ = one.Call(t.Context(), fails)
				other.Stop()
				group.Stop()
				require.False(t, infuse.IsLinked(cfg.Storage))
				_ = one.Call(t.Context(), fails) // also a stopped one reports
				require.False(t, infuse.IsLinked(cfg.Storage))
			}
			forgotten := storage()
			for range 10 {
				_, err := infuse.New("forgotten", infuse.Config{Storage: forgotten})
				require.NoError(t, err)
			}
			require.Eventually(t, func() bool {
				runtime.GC()
				return !infuse.IsLinked(forgotten)
			}, patience, pace, "nor does it keep a breaker that nobody stops")
		})
	}
}

// watching is a storage whose Watch does what it likes.
type watching struct {
	infuse.Storage
	watch func() (stop func())
}

func (w *watching) Watch(string, func(infuse.Record)) func() { return w.watch() }

// After a panic in Watch or in its stop, the link kept its circuit for good. A
// panic at the end of a breaker that nobody stops ended the process.
func TestAWatchThatPanicsLeavesNothingBehind(t *testing.T) {
	rude := func() { panic("a watch is beside itself") }
	for name, watch := range map[string]func() (stop func()){
		"at once":  func() func() { rude(); return nil },
		"at stop":  func() func() { return rude },
		"no stop":  func() func() { return nil },
		"at leave": func() func() { return runtime.Goexit },
	} {
		t.Run(name, func(t *testing.T) {
			storage := &watching{infuse.NewMemoryStorage(), watch}
			if name == "at once" {
				require.Panics(t, func() { _, _ = infuse.New("prices", infuse.Config{Storage: storage}) })
				require.False(t, infuse.IsLinked(storage))
				return
			}
			b, err := infuse.New("prices", infuse.Config{Storage: storage})
			require.NoError(t, err)
			require.Equal(t, errUnhealthy, b.Call(t.Context(), fails))
			require.Equal(t, 1, recordOf(t, b).Failures)
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				b.Stop()
			}()
			<-stopped
			require.False(t, infuse.IsLinked(storage))
		})
	}
	t.Run("of a breaker that nobody stops", func(t *testing.T) {
		storage := &watching{infuse.NewMemoryStorage(), func() func() { return rude }}
		_, err := infuse.New("prices", infuse.Config{Storage: storage})
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			runtime.GC()
			return !infuse.IsLinked(storage)
		}, patience, pace)
	})
	t.Run("ends the goroutine of New", func(t *testing.T) {
		storage := &watching{infuse.NewMemoryStorage(), func() func() { runtime.Goexit(); return nil }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = infuse.New("prices", infuse.Config{Storage: storage})
		}()
		<-done
		require.False(t, infuse.IsLinked(storage))
	})
}
