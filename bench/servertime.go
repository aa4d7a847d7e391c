package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// Section 2: what Redis itself spends on a counted failure.

// oldScript is a file with the script that the first version ran for each
// change; empty if that is not to be measured.
var oldScript string

// A counter counts failures in Redis, each with one script.
type counter struct {
	name  string
	count func(circuit, source string, number uint64) error
}

const (
	sources     = 20 // that report in turn, as the processes of a fleet
	countedEach = 400
)

// rows are how many failures a circuit gets.
var rows = []struct {
	name   string
	length int
}{
	{"in rows of 4", 4},
	{"in a row of 400", countedEach},
}

func serverTimes(size sizes) (table, error) {
	server, err := redistest.Launch()
	if err != nil {
		return table{}, err
	}
	defer server.Close()
	client := server.Client()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()
	counters := []counter{{infuseName, countWith(storage)}}
	if oldScript != "" {
		source, err := os.ReadFile(oldScript)
		if err != nil {
			return table{}, err
		}
		counters = append(counters, counter{"its first version", countByOldScript(client, redis.NewScript(string(source)))})
	}
	t := table{
		title: "Redis's own time for a counted failure",
		text:  fmt.Sprintf("µs by INFO commandstats, the commands within the script and all, %d failures of %d sources a round, in turns.", countedEach, sources),
		head:  []string{"", rows[0].name, rows[1].name, "commands a failure"},
	}
	progress("2. Redis's own time")
	found := make([][2][]serverTime, len(counters))
	for range size.rounds {
		for i, c := range counters {
			for j, row := range rows {
				x, err := measureServerTime(client, c, row.length)
				if err != nil {
					return table{}, err
				}
				found[i][j] = append(found[i][j], x)
			}
		}
	}
	micros := func(x serverTime) float64 { return x.micros }
	for i, c := range counters {
		t.rows = append(t.rows, []string{
			c.name, number(medianOf(found[i][0], micros)), number(medianOf(found[i][1], micros)),
			number(medianOf(found[i][0], func(x serverTime) float64 { return x.commands })),
		})
	}
	return t, nil
}

// serverTime is what a failure costs Redis.
type serverTime struct{ micros, commands float64 }

func measureServerTime(client *redis.Client, c counter, row int) (serverTime, error) {
	if err := c.count(newName(), "first", 1); err != nil { // Redis knows the script
		return serverTime{}, err
	}
	if err := client.ConfigResetStat(ctx).Err(); err != nil {
		return serverTime{}, err
	}
	circuit := ""
	for i := range countedEach {
		if i%row == 0 {
			circuit = newName()
		}
		if err := c.count(circuit, fmt.Sprint("source-", i%sources), uint64(i+1)); err != nil {
			return serverTime{}, err
		}
	}
	info, err := client.Info(ctx, "commandstats").Result()
	if err != nil {
		return serverTime{}, err
	}
	calls, err1 := statOf(info, "calls")
	micros, err2 := statOf(info, "usec")
	if err1 != nil {
		return serverTime{}, err1
	}
	return serverTime{micros / countedEach, calls / countedEach}, err2
}

// statOf returns a figure of EVALSHA.
func statOf(info, name string) (float64, error) {
	_, stats, _ := strings.Cut(info, "cmdstat_evalsha:")
	stats, _, _ = strings.Cut(stats, "\n")
	_, value, found := strings.Cut(","+stats, ","+name+"=")
	if !found {
		return 0, fmt.Errorf("no %s of EVALSHA in %q", name, info)
	}
	value, _, _ = strings.Cut(value, ",")
	return strconv.ParseFloat(value, 64)
}

// countWith reports a failure as a process does that no limit brings to a swap.
func countWith(storage infuse.Storage) func(string, string, uint64) error {
	limits := infuse.Limits{FailMax: 1_000_000, ResetTimeout: openTime, SuccessThreshold: 1, MaxTrials: 1, TrialTimeout: openTime}
	return func(circuit, source string, number uint64) error {
		_, _, err := storage.Apply(ctx, circuit, infuse.Change{
			Source: source, Number: number, Limits: limits, By: "host-1:123", Cause: "connection refused",
			Calls: infuse.Calls{Failures: 1, Lead: 1, Streak: 1},
		})
		return err
	}
}

// countByOldScript runs the script with the arguments that the first version
// gave it for a failure.
func countByOldScript(client *redis.Client, script *redis.Script) func(string, string, uint64) error {
	return func(circuit, source string, number uint64) error {
		hour := openTime.Milliseconds()
		return script.Run(ctx, client, []string{"old:{" + circuit + "}"},
			"report", fmt.Sprint(source, ".", number), "1 0 0 0 0 0 -",
			1_000_000, hour, 1, 1, hour,
			1, 0, 1, 0, 0, 9000, hour).Err()
	}
}
