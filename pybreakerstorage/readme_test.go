package pybreakerstorage_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/snippets"
)

func TestReadmeCompiles(t *testing.T) {
	require.Equal(t, 1, snippets.Build(t, "README.md"))
}
