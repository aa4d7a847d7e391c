//go:build !linux

package redistest

import "syscall"

// dieWithParent has no way to ask for that here.
func dieWithParent() *syscall.SysProcAttr { return nil }
