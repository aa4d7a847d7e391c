// Package redis_test has the tests of RedisStorage on real servers and on
// miniredis, and of what docs/redis.md says about it.
package redis_test

import (
	"os"
	"testing"

	"github.com/infuse-go/infuse/internal/redistest"
)

// TestMain runs the tests in the root of the module, where the documents are.
func TestMain(m *testing.M) {
	if err := os.Chdir("../../.."); err != nil {
		panic(err)
	}
	os.Exit(redistest.Run(m))
}
