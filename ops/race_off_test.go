//go:build !race

package ops_test

const underRace = false
