// Package worker has a program start itself again, as one process of a fleet.
// The new process reads its plan, prepares itself and says that it is ready;
// at a word it works, from an instant on that is the same for all, and hands
// back what it found.
package worker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// flag begins the one argument of a process that is a worker.
const flag = "-worker="

// A Job is what one kind of worker does: it returns the work for a plan, and
// what is to be done after it.
type Job func(plan json.RawMessage) (work func(begin time.Time) (any, error), end func(), err error)

// Of makes a Job of a func that takes its plan and gives its result as they are.
func Of[P, R any](prepare func(P) (work func(begin time.Time) (R, error), end func(), err error)) Job {
	return func(plan json.RawMessage) (func(time.Time) (any, error), func(), error) {
		var p P
		if err := json.Unmarshal(plan, &p); err != nil {
			return nil, nil, err
		}
		work, end, err := prepare(p)
		return func(begin time.Time) (any, error) { return work(begin) }, end, err
	}
}

// Serve does the job that this process was started for, and exits. It returns
// at once in a process that is no worker. Call it first in main, and in
// TestMain.
func Serve(jobs map[string]Job) {
	if len(os.Args) != 2 || !strings.HasPrefix(os.Args[1], flag) {
		return
	}
	name := strings.TrimPrefix(os.Args[1], flag)
	if err := serve(jobs[name], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "worker %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(job Job, in io.Reader, out io.Writer) error {
	if job == nil {
		return fmt.Errorf("there is no such job")
	}
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return io.ErrUnexpectedEOF
	}
	work, end, err := job(lines.Bytes())
	if err != nil {
		return err
	}
	defer end()
	fmt.Fprintln(out, ready)
	if !lines.Scan() { // the one that started this process has ended
		return io.ErrUnexpectedEOF
	}
	begin, err := time.Parse(time.RFC3339Nano, lines.Text())
	if err != nil {
		return err
	}
	result, err := work(begin)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(result); err != nil {
		return err
	}
	lines.Scan() // until End: others may be at work yet
	return nil
}

const ready = "ready"

// Worker is a process that was started.
type Worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Start starts this program as a worker, and returns when it is ready.
func Start(job string, plan any) (*Worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return StartProgram(self, job, plan)
}

// StartProgram is Start for another program that calls Serve.
func StartProgram(program, job string, plan any) (*Worker, error) {
	w := &Worker{cmd: exec.Command(program, flag+job)}
	w.cmd.Stderr = os.Stderr
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	err = json.NewEncoder(w.in).Encode(plan)
	if line, readErr := w.out.ReadString('\n'); err != nil || readErr != nil || line != ready+"\n" {
		w.End()
		return nil, fmt.Errorf("worker %s did not get ready: %q, %v, %v", job, line, err, readErr)
	}
	return w, nil
}

// Work has the worker do its work, and stores what it found. begin is the
// instant from which on the whole fleet works.
func (w *Worker) Work(begin time.Time, result any) error {
	if _, err := fmt.Fprintln(w.in, begin.Format(time.RFC3339Nano)); err != nil {
		return err
	}
	line, err := w.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, result)
}

// Signal sends the worker a signal.
func (w *Worker) Signal(signal os.Signal) error { return w.cmd.Process.Signal(signal) }

// Kill ends the worker as a crash would, and returns once it is gone.
func (w *Worker) Kill() {
	_ = w.cmd.Process.Kill()
	w.End()
}

// End has the worker end, and waits until it has. One that has not worked does
// not any more.
func (w *Worker) End() {
	_ = w.in.Close()
	_ = w.cmd.Wait()
}

// InParallel does n things, at most so many at a time.
func InParallel(n, most int, do func(i int) error) error {
	errs, slots := make([]error, n), make(chan struct{}, most)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = do(i)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
