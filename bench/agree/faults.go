package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse/bench/results"
	"github.com/infuse-go/infuse/bench/worker"
	"github.com/infuse-go/infuse/internal/redistest"
)

// fault happens whenever a circuit becomes suspect.
type fault struct {
	name  string
	takes time.Duration // at most
	do    func(ctx context.Context, f *fleet, circuit string) error
}

var faults = []fault{
	{"Redis is stopped for 200 ms", 200 * time.Millisecond, stopRedis(200 * time.Millisecond)},
	{"Redis is stopped for 2 s", 2 * time.Second, stopRedis(2 * time.Second)},
	{"Redis is stopped for 8 s", 8 * time.Second, stopRedis(8 * time.Second)},
	{"Redis is stopped for 20 s", 20 * time.Second, stopRedis(20 * time.Second)},
	{"Redis is killed, and empty 2 s later", 3 * time.Second, func(_ context.Context, f *fleet, _ string) error {
		f.server.Kill()
		time.Sleep(2 * time.Second)
		return f.server.Restart()
	}},
	{"Redis loses all records", 0, func(ctx context.Context, f *fleet, _ string) error {
		return withClient(f.server, func(c *redis.Client) error { return c.FlushAll(ctx).Err() })
	}},
	{"Redis has the suspicion again 500 ms later", time.Second, func(ctx context.Context, f *fleet, circuit string) error {
		return withClient(f.server, func(c *redis.Client) error { // as after a failover that loses the dismissal
			key := "infuse:{" + circuit + "}"
			record, err := c.Dump(ctx, key).Result()
			if err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond)
			return c.RestoreReplace(ctx, key, time.Hour, record).Err()
		})
	}},
	{"two healthy processes are stopped for 3 s", 3 * time.Second, stopProcesses(0, 1)},
	{"the unhealthy process is stopped for 3 s", 3 * time.Second, stopProcesses(faultSize)},
}

func stopRedis(d time.Duration) func(context.Context, *fleet, string) error {
	return func(_ context.Context, f *fleet, _ string) error {
		f.server.Pause()
		time.Sleep(d)
		f.server.Resume()
		return nil
	}
}

func stopProcesses(processes ...int) func(context.Context, *fleet, string) error {
	return func(_ context.Context, f *fleet, _ string) error {
		all := func(signal os.Signal) error {
			return worker.InParallel(len(processes), len(processes), func(i int) error { return f.signal(processes[i], signal) })
		}
		if err := all(syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(3 * time.Second)
		return all(syscall.SIGCONT)
	}
}

func withClient(server *redistest.Server, do func(*redis.Client) error) error {
	c := server.Client()
	defer c.Close()
	return do(c)
}

// faultSize is the number of healthy processes beside the unhealthy one.
const faultSize = 4

var faultRates = []float64{1, 10}

// settles is how long before the onset no fault begins, so that the storage is
// available again.
var settles = 8 * time.Second

// endured is what a fault did to the circuits of a fleet.
type endured struct {
	found
	faults int           // that happened
	until  time.Duration // the outage made all processes reject
	never  int           // circuits in which some process did not
}

// run has the faults happen until the onset of an outage, and then waits for all
// processes to reject.
func (ft fault) run(untilOnset, outage time.Duration, seed uint64) (e endured, err error) {
	server, err := redistest.Launch()
	if err != nil {
		return e, err
	}
	defer server.Close()
	plans := make([]plan, faultSize+1) // the last one is unhealthy
	for i := range plans {
		plans[i] = plan{For: untilOnset + outage, Seed: seed + uint64(i)}
		for _, rate := range faultRates {
			c := calls{Circuit: fmt.Sprintf("%gps", rate), Settings: settings{ResetTimeout: reset}, Rate: rate, Onset: untilOnset, After: 1}
			if i == faultSize {
				c.Rate, c.Burst, c.Before = 1, failMax, 1
			}
			plans[i].Calls = append(plans[i].Calls, c)
		}
	}
	plans[faultSize].Crash = crashEvery
	f, err := start(server, plans)
	if err != nil {
		return e, err
	}
	defer f.end()
	begin := time.Now().Add(time.Second)
	onset := begin.Add(untilOnset)
	ctx, cancel := context.WithDeadline(context.Background(), onset)
	defer cancel()
	suspect := make(chan string)
	for circuit, w := range f.watched {
		w.notify(func() {
			select {
			case suspect <- circuit:
			default: // a fault is under way
			}
		})
	}
	var happened sync.WaitGroup
	happened.Go(func() {
		for time.Until(onset) > ft.takes+settles {
			select {
			case circuit := <-suspect:
				if err = ft.do(context.Background(), f, circuit); err != nil {
					return
				}
				e.faults++
				time.Sleep(time.Second)
			case <-time.After(time.Second):
			}
		}
		<-ctx.Done()
		for circuit := range f.watched {
			suspicions, openings := f.seen(circuit)
			e.suspicions, e.openings = e.suspicions+suspicions, e.openings+openings
		}
	})
	tallies, liveErr := f.live(begin)
	happened.Wait()
	if liveErr != nil || err != nil {
		return e, fmt.Errorf("%s: %w", ft.name, errors.Join(liveErr, err))
	}
	for c := range faultRates {
		for _, t := range tallies[:faultSize] {
			e.calls += t[c].Calls
			e.rejected += t[c].Rejected
			e.until = max(e.until, t[c].RejectedAt)
			if t[c].RejectedAt == 0 {
				e.never++
			}
		}
	}
	return e, nil
}

// faultTable returns how many values are wrong. All faults are tested at a time.
func faultTable(w io.Writer, untilOnset time.Duration, seed uint64) (wrong int, err error) {
	const outage = 20 * time.Second
	rows := make([][]string, len(faults))
	wrongs := make([]int, len(faults))
	err = worker.InParallel(len(faults), len(faults), func(i int) error {
		ft := faults[i]
		e, err := ft.run(untilOnset, outage, seed+uint64(100*i))
		if err != nil {
			return err
		}
		until := ms(e.until)
		if e.never > 0 {
			until = fmt.Sprintf("never for %d", e.never)
		}
		rows[i] = []string{ft.name, fmt.Sprint(e.faults), fmt.Sprint(e.suspicions), fmt.Sprint(e.calls), results.Count(float64(e.rejected), float64(e.calls)/100, " %"), results.Count(float64(e.openings), untilOnset.Hours()*float64(len(faultRates)), " an hour"), until}
		wrongs[i] = int(e.rejected) + e.openings + e.never
		if e.faults == 0 {
			wrongs[i]++
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, n := range wrongs {
		wrong += n
	}
	fmt.Fprintf(w, "## Faults during a suspicion\n\n%d healthy processes make 1 call a second in one circuit and 10 in another; an unhealthy one makes bursts of %d in both, and is killed and started again every %v. ResetTimeout is %v. Whenever a bystander finds a circuit suspect, the fault happens. After %v all calls fail. Promised: no rejection and no opening before that, and then all processes reject. All faults are tested at a time, each with its own Redis. If Redis is stopped for 2 s or more, fewer suspicions begin: a process that starts takes the failures on record for its own, and reports none until a healthy process fails or reads the record. Failovers of Sentinel and Cluster are tested by internal/fleettest.\n\n", faultSize, failMax, crashEvery, reset, untilOnset)
	table(w, []string{"fault", "times", "suspicions", "healthy calls", "rejected", "openings", "outage: all reject after, ms"}, rows)
	return wrong, nil
}

func ms(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
