package infuse

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnknownNumbersArePrintedAsNumbers(t *testing.T) {
	require.Equal(t, "State(9)", State(9).String())
	require.Equal(t, "Outcome(9)", Outcome(9).String())
}
