package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/bench/results"
	"github.com/infuse-go/infuse/internal/redistest"
)

// The main table alone: section 1 beside the two peers that it is held against.

// glance is for a machine that does other things, too: a median of many short
// rounds in turns is nearer to the truth than one of a few long ones.
var glance = sizes{rounds: 41, batch: 5 * time.Millisecond}

// quick prints what calls cost in one process: medians, and their ratios to the
// fastest peer.
func quick(size sizes, out io.Writer) error {
	server, err := redistest.Launch()
	if err != nil {
		return err
	}
	defer server.Close()
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	defer storage.Close()
	fmt.Fprintf(out, "%s, %d processors, %s; medians of %d rounds in turns; parallel: wall time by all calls\n",
		results.CPU(), runtime.GOMAXPROCS(0), runtime.Version(), size.rounds)
	for _, over := range []struct {
		name     string
		peer     string
		subjects []subject
	}{
		{"a call", eapacheName, only(subjects(storage), eapacheName, gobreakerName)},
		{"a request over HTTP", gobreakerName, only(webSubjects(), gobreakerName)},
	} {
		for _, sc := range scenarios {
			results, err := sc.measure(over.subjects, size)
			if err != nil {
				return err
			}
			if err := writeQuick(out, over.name+": "+sc.name, over.peer, results); err != nil {
				return err
			}
		}
	}
	return nil
}

// only returns the floor, ours, and the peers of these names.
func only(all []subject, peers ...string) []subject {
	return slices.DeleteFunc(all, func(s subject) bool {
		return !s.floor && s.module != "" && !slices.Contains(peers, s.name)
	})
}

func writeQuick(out io.Writer, title, peer string, results []*timed) error {
	than := results[slices.IndexFunc(results, func(t *timed) bool { return t.subject.name == peer })]
	ratio := func(of, to float64) string { return number(of / to) }
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n%s\t serial ns\t× %s\t parallel ns\t× %s\t allocations\t\n", title, peer, peer)
	for _, t := range results {
		serial, parallel := medianOf(t.serial, nsOf), medianOf(t.parallel, nsOf)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", strings.ReplaceAll(t.subject.name, "*", ""),
			number(serial), ratio(serial, medianOf(than.serial, nsOf)),
			number(parallel), ratio(parallel, medianOf(than.parallel, nsOf)),
			whole(int64(math.Round(medianOf(t.serial, allocsOf)))))
	}
	return w.Flush()
}
