package storagetest_test

import (
	"flag"
	"os"
	"testing"

	"github.com/infuse-go/infuse/internal/redistest"
)

func TestMain(m *testing.M) {
	// They wait for time to pass, and hardly need a processor. -parallel still holds.
	_ = flag.Set("test.parallel", "4")
	os.Exit(redistest.Run(m))
}
