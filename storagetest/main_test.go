package storagetest_test

import (
	"os"
	"testing"

	"github.com/infuse-go/infuse/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }
