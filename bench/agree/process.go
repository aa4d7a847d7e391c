package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
)

// workerFlag makes this program one process of a fleet: it reads its plan from
// the standard input, says that it is ready, waits for a line, and writes what
// it found.
const workerFlag = "-worker"

func work(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	var p plan
	if !lines.Scan() {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
		return err
	}
	c, err := gather(p)
	if err != nil {
		return err
	}
	defer c.leave()
	fmt.Fprintln(out, "ready")
	if !lines.Scan() { // the one that started this process has ended
		return io.ErrUnexpectedEOF
	}
	return json.NewEncoder(out).Encode(c.live())
}

// A group is some members of a fleet, in this process or in one of their own.
type group interface {
	live() result
	leave()
}

// worker is a process of a fleet.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startWorker(p plan) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: exec.Command(self, workerFlag)}
	w.cmd.Stderr = os.Stderr
	in, err1 := w.cmd.StdinPipe()
	out, err2 := w.cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("pipes: %v, %v", err1, err2)
	}
	w.in, w.out = in, bufio.NewScanner(out)
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(w.in).Encode(p); err != nil {
		w.leave()
		return nil, err
	}
	if !w.out.Scan() || w.out.Text() != "ready" {
		w.leave()
		return nil, fmt.Errorf("a process of the fleet did not get ready: %q", w.out.Text())
	}
	return w, nil
}

func (w *worker) live() (r result) {
	fmt.Fprintln(w.in, "go")
	if w.out.Scan() {
		_ = json.Unmarshal(w.out.Bytes(), &r)
	}
	return r
}

func (w *worker) leave() {
	_ = w.in.Close()
	_ = w.cmd.Wait()
}

// muster starts all groups of a fleet of that size, in so many processes; in
// this one if there are 0.
func muster(p plan, size, processes int) (groups []group, err error) {
	if processes == 0 {
		p.First, p.Last = 0, size
		c, err := gather(p)
		if err != nil {
			return nil, err
		}
		return []group{c}, nil
	}
	for i := range processes {
		p.First, p.Last = i*size/processes, (i+1)*size/processes
		w, err := startWorker(p)
		if err != nil {
			leaveAll(groups)
			return nil, err
		}
		groups = append(groups, w)
	}
	return groups, nil
}

func leaveAll(groups []group) {
	var all sync.WaitGroup
	for _, g := range groups {
		all.Go(g.leave)
	}
	all.Wait()
}

func liveAll(groups []group) (r result) {
	results := make([]result, len(groups))
	var all sync.WaitGroup
	for i, g := range groups {
		all.Go(func() { results[i] = g.live() })
	}
	all.Wait()
	for _, s := range results {
		r.add(s)
	}
	return r
}
