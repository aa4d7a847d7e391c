package redistest

// This file contains random numbers for tests, with a seed.

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// Dice returns a random number from 0 to n-1.
type Dice func(n int) int

// NewDice returns Dice with a seed.
func NewDice(seed, stream uint64) Dice { return rand.New(rand.NewPCG(seed, stream)).IntN }

// OneIn returns true with probability 1/n.
func (roll Dice) OneIn(n int) bool { return roll(n) == 0 }

// Seed returns a new seed in each run, or MODEL_SEED if that is set.
func Seed(t testing.TB) uint64 {
	seed := rand.Uint64()
	if given := os.Getenv("MODEL_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("seed: MODEL_SEED=%d", seed)
	return seed
}
