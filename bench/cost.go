package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse/bench/member/plan"
	"github.com/infuse-go/infuse/bench/waiting"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// What a fleet costs Redis, by its size and by the share of calls that fail: real
// processes, beside those of another version of Infuse and gobreaker's shared mode.

// oldTree is a checkout of the other version; empty if there is none.
var oldTree string

// costKind is a fleet that is measured. In each phase only one of them makes calls.
type costKind struct {
	name      string
	program   string
	gobreaker bool
	old       bool
	length    float64 // of its phases, beside that of the others: gobreaker's shared mode costs the same at each call
}

// spending is what a fleet cost Redis in a phase.
type spending struct{ calls, rejected, requests, micros float64 }

func (s spending) plus(t spending, sign float64) spending {
	return spending{s.calls + sign*t.calls, s.rejected + sign*t.rejected, s.requests + sign*t.requests, s.micros + sign*t.micros}
}

// costKey is a cell of the table.
type costKey struct {
	kind, processes int
	errors          float64
}

// costPause is the time between two phases.
const costPause = 200 * time.Millisecond

// buildMembers builds the programs of the fleets in a directory.
func buildMembers(dir string) (kinds []costKind, err error) {
	build := func(name string, args ...string) (string, error) {
		program := filepath.Join(dir, name)
		out, err := exec.Command("go", append(append([]string{"build", "-o", program}, args...), "./member")...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("go build of a member: %w: %s", err, out)
		}
		return program, nil
	}
	program, err := build("member")
	if err != nil {
		return nil, err
	}
	kinds = []costKind{{infuseName, program, false, false, 1}}
	if oldTree != "" {
		modfile, err := modfileFor(dir, oldTree)
		if err != nil {
			return nil, err
		}
		old, err := build("old-member", "-modfile="+modfile)
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, costKind{"second version", old, false, true, 1})
	}
	return append(kinds, costKind{gobreakerFleet.name, program, true, false, 0.5}), nil
}

// modfileFor returns a go.mod like that of this module, with Infuse of another tree.
func modfileFor(dir, tree string) (string, error) {
	modfile := filepath.Join(dir, "go.mod")
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return "", err
		}
	}
	edit := []string{"mod", "edit"}
	for _, module := range []string{"", "/prominfuse", "/otelinfuse"} {
		edit = append(edit, "-replace=github.com/infuse-go/infuse"+module+"="+tree+module)
	}
	if out, err := exec.Command("go", append(edit, modfile)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go mod edit: %w: %s", err, out)
	}
	return modfile, nil
}

// measureCosts measures the fleets of one size, phase by phase in turns.
func measureCosts(kinds []costKind, processes int, size sizes, length time.Duration, found map[costKey][]spending) (err error) {
	servers := make([][]*redistest.Server, len(kinds)) // one for each share of errors
	plans := make([]plan.Plan, len(kinds))
	for k, kind := range kinds {
		plans[k] = plan.Plan{Gobreaker: kind.gobreaker, FailMax: fewFailures, Rate: size.rate}
		for _, share := range size.costErrors {
			server, err := redistest.Launch()
			if err != nil {
				return err
			}
			defer server.Close()
			servers[k] = append(servers[k], server)
			plans[k].Circuits = append(plans[k].Circuits, plan.Circuit{Addr: server.Addr(), Errors: share})
		}
	}
	at := costPause
	for round := range size.costRounds {
		for c := range size.costErrors {
			for k, kind := range kinds {
				end := at + time.Duration(kind.length*float64(length))
				plans[k].Phases = append(plans[k].Phases, plan.Phase{Circuit: c, Start: at, End: end, Seed: uint64(round)})
				at = end + costPause
			}
		}
	}
	workers := make([][]*worker.Worker, len(kinds))
	for k, kind := range kinds {
		workers[k] = make([]*worker.Worker, processes)
		defer endAll(workers[k])
		err := worker.InParallel(processes, 8, func(i int) (err error) {
			own := plans[k]
			own.Process = uint64(i)
			workers[k][i], err = worker.StartProgram(kind.program, "member", own)
			return err
		})
		if err != nil {
			return err
		}
		for _, server := range servers[k] {
			if !kind.gobreaker {
				if err := waiting.ForSubscribers(server, processes); err != nil {
					return err
				}
			}
		}
	}
	begin := time.Now().Add(time.Second)
	tallies := make([][][]plan.Tally, len(kinds))
	working := make(chan error, len(kinds))
	for k := range kinds {
		tallies[k] = make([][]plan.Tally, processes)
		go func() {
			working <- worker.InParallel(processes, processes, func(i int) error { return workers[k][i].Work(begin, &tallies[k][i]) })
		}()
	}
	spent := make([][]spending, len(kinds))
	for phase := range plans[0].Phases {
		for k := range kinds {
			p := plans[k].Phases[phase]
			client := servers[k][p.Circuit].Client(func(o *redis.Options) { o.PoolSize = 1 })
			_ = client.Ping(ctx).Err() // it is connected
			time.Sleep(time.Until(begin.Add(p.Start)))
			before, err1 := spendingOf(client)
			time.Sleep(time.Until(begin.Add(p.End)))
			after, err2 := spendingOf(client)
			_ = client.Close()
			if err = errors.Join(err1, err2); err != nil {
				return err
			}
			spent[k] = append(spent[k], after.plus(before, -1))
		}
	}
	for range kinds {
		if err := <-working; err != nil {
			return err
		}
	}
	for k := range kinds {
		for i, p := range plans[k].Phases {
			s := spent[k][i]
			for _, t := range tallies[k] {
				s.calls += float64(t[i].Ran + t[i].Rejected + t[i].Broke)
				s.rejected += float64(t[i].Rejected)
			}
			key := costKey{k, processes, size.costErrors[p.Circuit]}
			found[key] = append(found[key], s)
		}
	}
	return nil
}

// spendingOf reads what a Redis has spent so far.
func spendingOf(client *redis.Client) (s spending, err error) {
	info, err := client.Info(ctx, "cpu", "stats").Result()
	figures := figuresOf(info)
	s.micros = 1e6 * (figures["used_cpu_user_main_thread"] + figures["used_cpu_sys_main_thread"])
	s.requests = figures["total_reads_processed"] - 1 // this one
	if err == nil && s.micros == 0 {
		err = fmt.Errorf("no used_cpu_user_main_thread in %q", info)
	}
	return s, err
}

// figuresOf returns the numbers of INFO.
func figuresOf(info string) map[string]float64 {
	figures := map[string]float64{}
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if x, err := strconv.ParseFloat(value, 64); err == nil { // some are words
			figures[name] = x
		}
	}
	return figures
}

// costs is the section.
func costs(size sizes, r *report) error {
	dir, err := os.MkdirTemp("", "members-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kinds, err := buildMembers(dir)
	if err != nil {
		return err
	}
	r.title = "What a fleet costs Redis"
	var times []string
	found := map[costKey][]spending{}
	for i, n := range size.costProcesses {
		progress("cost for Redis: %d processes", n)
		if err := measureCosts(kinds, n, size, size.costTimes[i], found); err != nil {
			return err
		}
		times = append(times, fmt.Sprintf("%v with %d processes", size.costTimes[i], n))
	}
	r.intro = fmt.Sprintf("Commands and processor time of Redis for 1,000 calls of a fleet, at a share of calls that fail at random. Real processes of the operating system, with a Redis client and a breaker each, on one circuit: %g calls/s each at random times (Poisson), default settings. "+
		"The kinds take turns: each in %d phases for each share, of %s; half as long for gobreaker, whose cost does not depend on errors. The calls of a phase have the same times and outcomes for Infuse and the second version (the commit cf206a2, before the rule of evidence). Figures are medians of the phases. "+
		"A command is one that a process sends, as Redis reads it. Both versions of Infuse send a PING after 2 s of silence: %.0f for 1,000 calls of this rate. The processor time is that of Redis's main thread (INFO cpu); Redis's own housekeeping is in it, which weighs most where there are few calls. With few errors both versions send two commands for each failing call: the failure, and the success that ends the streak. In large fleets with frequent errors the shared circuit is often suspect, and then all processes report their results: that costs more than in the second version, which opened without evidence, and the more the later messages arrive on a busy machine.",
		size.rate, size.costRounds, strings.Join(times, ", "), 500/size.rate)
	head := func(unit string) []string {
		all := []string{"processes", "errors"}
		for _, k := range kinds {
			all = append(all, k.name+": "+unit)
			if k.old {
				all = append(all, "Infuse beside it")
			}
		}
		return all
	}
	commands := table{title: "Commands for 1,000 calls", head: head("commands")}
	micros := table{title: "Processor time for 1,000 calls", head: head("µs")}
	rejections := table{
		title: "Calls of these fleets that are rejected",
		text:  "Rejected calls cost Redis nothing: with many of them the figures above are too low. The number of calls is that of Infuse.",
		head:  []string{"processes", "errors", "calls"},
	}
	for _, k := range kinds {
		rejections.head = append(rejections.head, k.name)
	}
	for _, n := range size.costProcesses {
		for _, share := range size.costErrors {
			start := []string{whole(int64(n)), fmt.Sprintf("%g %%", 100*share)}
			row := func(of func(spending) float64) []string {
				cells := slices.Clone(start)
				var ours float64
				for k, kind := range kinds {
					x := medianOf(found[costKey{k, n, share}], func(s spending) float64 { return 1000 * of(s) / max(1, s.calls) })
					cells = append(cells, number(x))
					if k == 0 {
						ours = x
					}
					if kind.old {
						cells = append(cells, "× "+number(ours/x))
					}
				}
				return cells
			}
			commands.rows = append(commands.rows, row(func(s spending) float64 { return s.requests }))
			micros.rows = append(micros.rows, row(func(s spending) float64 { return s.micros }))
			cells := slices.Clone(start)
			for k := range kinds {
				var all spending
				for _, s := range found[costKey{k, n, share}] {
					all = all.plus(s, 1)
				}
				if k == 0 {
					cells = append(cells, whole(int64(all.calls)))
				}
				cells = append(cells, shareOf(int64(all.rejected), int64(all.calls)))
			}
			rejections.rows = append(rejections.rows, cells)
		}
	}
	r.tables = []table{commands, micros, rejections}
	return nil
}
