package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// A process is a child of ours. On Linux it dies with us, however we end. A
// nil process is one that never started.
type process struct {
	child *os.Process
	alive context.Context // done, with the reason, once the child is gone
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = dieWithParent()
	alive, gone := context.WithCancelCause(context.Background())
	started := make(chan error)
	go func() {
		// Linux ties the child to the thread that started it: keep that.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its ProcessState says more
			err = fmt.Errorf("%w: %v", errEnded, cmd.ProcessState)
		}
		gone(err)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return &process{child: cmd.Process, alive: alive}, nil
}

// kill ends the child, stopped or not, and returns once it is gone.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(os.Kill)
	<-p.alive.Done()
}

// signal does nothing to a child that is gone.
func (p *process) signal(signal os.Signal) {
	if p == nil {
		return
	}
	if err := p.child.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("redistest: signal %v: %v", signal, err))
	}
}
