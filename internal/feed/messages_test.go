package feed

// This file tests WatchMessages.

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A message causes a load only if a watcher needs it.
func TestUnneededMessageCausesNoLoad(t *testing.T) {
	bubble(t, func(t *testing.T, r *fakeRedis, f *Feed[int64]) {
		var all []string
		needs := false
		f.WatchMessages("a", func(int64) {}, func(message string) bool {
			all = append(all, message)
			return needs
		})
		synctest.Wait()
		before := r.loaded("a")
		for range 10 {
			r.set("a", 1)
			time.Sleep(2 * hintPause)
			synctest.Wait()
		}
		require.Len(t, all, 10)
		require.Equal(t, before, r.loaded("a"))

		needs = true
		r.set("a", 2)
		synctest.Wait()
		require.Equal(t, before+1, r.loaded("a"))

		needs = false
		time.Sleep(time.Second)
		for range 2 * maxMessages {
			r.set("a", 3)
		}
		time.Sleep(2 * hintPause)
		synctest.Wait()
		require.Equal(t, before+2, r.loaded("a"), "too many messages at a time")

		f.Watch("a", func(int64) {})
		time.Sleep(time.Second)
		before = r.loaded("a")
		r.set("a", 4)
		synctest.Wait()
		require.Equal(t, before+1, r.loaded("a"), "another watcher needs it")
	})
}
