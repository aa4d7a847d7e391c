package rpc

// This file contains the matching of error texts.

import (
	"slices"
	"strings"
)

// HasPrefix reports whether text begins with one of the prefixes.
func HasPrefix(text string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
}
