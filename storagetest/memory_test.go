package storagetest_test

// This file runs the tests with MemoryStorage.

import (
	"testing"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/storagetest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) infuse.Storage { return infuse.NewMemoryStorage() })
}
