//go:build !race

package infuse_test

const raceDetector = false
