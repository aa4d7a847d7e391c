// Package documents_test checks README.md, docs/ and the documentation of the module:
// their code compiles, their links and figures are right.
package documents_test

import (
	"os"
	"testing"
)

// TestMain runs the tests in the root of the module, where the documents are.
func TestMain(m *testing.M) {
	if err := os.Chdir("../../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
