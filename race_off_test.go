//go:build !race

package infuse_test

const underRace = false
