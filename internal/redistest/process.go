package redistest

// This file contains process, a child process that ends with this one.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// A process is a child process. On Linux it ends with this process in any case. A nil
// process was never started.
type process struct {
	child *os.Process
	alive context.Context // done, with the reason, once the child has ended
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = dieWithParent()
	alive, gone := context.WithCancelCause(context.Background())
	started := make(chan error)
	go func() {
		// On Linux the child ends with the thread that started it: keep that thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // ProcessState has more detail
			err = fmt.Errorf("%w: %v", errEnded, cmd.ProcessState)
		}
		gone(err)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return &process{child: cmd.Process, alive: alive}, nil
}

// kill ends the child, even if it is stopped, and returns once it has ended.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(os.Kill)
	<-p.alive.Done()
}

// signal does nothing if the child has ended.
func (p *process) signal(signal os.Signal) {
	if p == nil {
		return
	}
	if err := p.child.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("redistest: signal %v: %v", signal, err))
	}
}
