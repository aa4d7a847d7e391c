//go:build !unix

package redistest

import "syscall"

// There is nothing like it here: to send these panics.
const (
	pauseSignal  = syscall.Signal(-1)
	resumeSignal = syscall.Signal(-2)
)
