//go:build !linux

package redistest

import "syscall"

// dieWithParent returns nil: only Linux supports it.
func dieWithParent() *syscall.SysProcAttr { return nil }
