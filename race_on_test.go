//go:build race

package infuse_test

// underRace tells that the race detector is on: sync.Pool then drops things on
// purpose, and a million calls take their time.
const underRace = true
