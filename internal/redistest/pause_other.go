//go:build !unix

package redistest

import "syscall"

// These signals do not exist: sending them panics.
const (
	pauseSignal  = syscall.Signal(-1)
	resumeSignal = syscall.Signal(-2)
)
