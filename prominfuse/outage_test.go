package prominfuse_test

// This file tests the alerts with the recording of an outage.

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/prominfuse"
)

const (
	scrapeInterval = 15 * time.Second
	callInterval   = 2 * time.Second
	outageStarts   = 5 // minutes
	outageEnds     = 20
	recordingEnds  = 45
)

// The recorded fleet has the processes a to e, and these circuits. The upstreams fail
// from outageStarts to outageEnds. A process makes a call each callInterval.
//
//	prices    fails for all; a, b and c call it; d and e stop 20 s after outageStarts
//	reports   fails for all; all stop 20 s after outageStarts
//	stock     fails for a, b and c only; all call it
//	mail      like stock, but a, b and c stop 20 s after outageStarts
//	healthy   never fails; all call it
var recordedCircuits = []string{"prices", "reports", "stock", "mail", "healthy"}

func callsAt(circuit, instance string, minute float64) bool {
	partitioned := instance < "d"
	switch circuit {
	case "prices":
		return partitioned || minute < outageStarts+20./60
	case "reports":
		return minute < outageStarts+20./60
	case "mail":
		return !partitioned || minute < outageStarts+20./60
	}
	return true
}

func failsAt(circuit, instance string, minute float64) bool {
	partitioned := instance < "d"
	return minute >= outageStarts && minute < outageEnds && circuit != "healthy" &&
		(partitioned || circuit == "prices" || circuit == "reports")
}

// recorded contains the values of each series, one per scrape.
type recorded map[string][]string

// recordOutage runs the fleet in fake time, and scrapes the collectors of its processes.
func recordOutage(t *testing.T, cfg infuse.Config) recorded {
	all := make(recorded)
	cfg.Storage = infuse.NewMemoryStorage()
	groups, registries := make(map[string]*infuse.Group), make(map[string]*prometheus.Registry)
	for _, instance := range []string{"a", "b", "c", "d", "e"} {
		counted := new(prominfuse.Transitions)
		cfg := cfg
		cfg.Instance, cfg.Listeners = instance, []*infuse.Listener{counted.Listener()}
		groups[instance] = newGroup(t, cfg)
		registries[instance] = register(t, groups[instance], counted)
	}
	began, scrapes := time.Now(), 0
	for time.Since(began) <= recordingEnds*time.Minute {
		minute := time.Since(began).Minutes()
		if time.Since(began) >= time.Duration(scrapes)*scrapeInterval {
			for instance, registry := range registries {
				all.scrape(t, registry, instance, scrapes)
			}
			scrapes++
		}
		for _, instance := range slices.Sorted(maps.Keys(groups)) {
			for _, circuit := range recordedCircuits {
				if !callsAt(circuit, instance, minute) {
					continue
				}
				_ = breakerOf(t, groups[instance], circuit).Call(t.Context(), func(context.Context) error {
					if failsAt(circuit, instance, minute) {
						return errFailing
					}
					return nil
				})
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(callInterval - 5*time.Millisecond)
		synctest.Wait()
	}
	return all
}

func (all recorded) scrape(t *testing.T, registry *prometheus.Registry, instance string, scrapes int) {
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{family.GetName(), map[string]string{"job": "shop", "instance": instance}, valueOf(m)}
			for _, label := range m.GetLabel() {
				s.labels[label.GetName()] = label.GetValue()
			}
			values := all[s.String()]
			for len(values) < scrapes {
				values = append(values, "_") // no such series
			}
			all[s.String()] = append(values, strconv.FormatFloat(s.value, 'g', -1, 64))
		}
	}
}

func (all recorded) series() (series []any) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		series = append(series, map[string]string{"series": name, "values": strings.Join(all[name], " ")})
	}
	return series
}

// In an outage, alerts fire for processes that make calls, but not for idle ones, whose
// circuits stay open and ready for a trial. The alerts resolve after the recovery. This
// holds with and without counted calls; with counted calls, also if the open duration is
// longer than the duration of the alert.
func TestAlertsInARecordedOutage(t *testing.T) {
	for name, cfg := range map[string]infuse.Config{
		"calls are counted":     {ResetTimeout: 30 * time.Second, CountCalls: true},
		"calls are not counted": {ResetTimeout: 30 * time.Second},
		"default open duration": {},
		"long open duration":    {ResetTimeout: 8 * time.Minute, CountCalls: true},
		"exponential backoff":   {ResetTimeout: 10 * time.Second, MaxResetTimeout: 2 * time.Minute, CountCalls: true},
	} {
		t.Run(name, func(t *testing.T) {
			var all recorded
			synctest.Test(t, func(t *testing.T) { all = recordOutage(t, cfg) })

			// The idle circuits are still open at the end.
			for _, instance := range []string{"a", "b", "c"} {
				require.Equal(t, "1", last(all[fmt.Sprintf(`infuse_circuit_ready_for_trial{circuit="mail",instance=%q,job="shop"}`, instance)]))
				require.Equal(t, "1", last(all[fmt.Sprintf(`infuse_circuit_local_only{circuit="mail",instance=%q,job="shop"}`, instance)]))
				require.Equal(t, "1", last(all[fmt.Sprintf(`infuse_circuit_state{circuit="reports",instance=%q,job="shop",state="open"}`, instance)]))
			}

			// The recovery closes the circuit in all processes, also in idle ones. No
			// process counts an opening then.
			for _, instance := range []string{"a", "b", "c", "d", "e"} {
				require.Equal(t, "1", last(all[fmt.Sprintf(`infuse_circuit_state{circuit="prices",instance=%q,job="shop",state="closed"}`, instance)]), instance)
				require.Equal(t, "0", last(all[fmt.Sprintf(`infuse_circuit_ready_for_trial{circuit="prices",instance=%q,job="shop"}`, instance)]), instance)
				for _, local := range []string{"true", "false"} {
					openings := all[fmt.Sprintf(`infuse_circuit_transitions_total{circuit="prices",instance=%q,job="shop",local=%q,to="open"}`, instance, local)]
					if local == "false" {
						require.NotEqual(t, "0", last(openings), instance)
					}
					require.Equal(t, openings[outageEnds*60/int(scrapeInterval/time.Second)], last(openings), "%s, local=%s", instance, local)
				}
			}

			longest := max(cfg.ResetTimeout, cfg.MaxResetTimeout, time.Minute) // default 1 m
			resolved := outageEnds + 2 + int(longest/time.Minute)
			var checks []any
			open := map[string]any{"labels": `{alertname="InfuseCircuitOpen", circuit="prices"}`, "value": 1}
			local := map[string]any{"labels": `{alertname="InfuseCircuitOpenInManyProcesses", circuit="stock"}`, "value": 1}
			for minute := range recordingEnds + 1 {
				expect := []any{}
				switch {
				case minute < outageStarts+5:
				case minute < outageStarts+7, minute > outageEnds-1 && minute < resolved:
					continue // the alert fires or resolves within these minutes
				case minute < outageEnds:
					expect = []any{open, local}
				}
				checks = append(checks, map[string]any{
					"expr":        `count by (alertname, circuit) (ALERTS{alertname=~"InfuseCircuitOpen.*", alertstate="firing"})`,
					"eval_time":   fmt.Sprintf("%dm", minute),
					"exp_samples": expect,
				})
			}
			// These alerts never fire.
			checks = append(checks, map[string]any{
				"expr":        fmt.Sprintf(`count_over_time(ALERTS{circuit=~"reports|mail|healthy", alertname=~"InfuseCircuitOpen.*", alertstate="firing"}[%dm])`, recordingEnds),
				"eval_time":   fmt.Sprintf("%dm", recordingEnds),
				"exp_samples": []any{},
			})
			testRules(t, map[string]any{
				"interval":         scrapeInterval.String(),
				"input_series":     all.series(),
				"promql_expr_test": checks,
				"alert_rule_test": []any{map[string]any{
					"alertname": "InfuseCircuitOpenInManyProcesses",
					"eval_time": fmt.Sprintf("%dm", outageEnds-2),
					"exp_alerts": []any{map[string]any{
						"exp_labels": map[string]string{"job": "shop", "circuit": "stock", "severity": "warning"},
						"exp_annotations": map[string]string{
							"summary":     "The local circuit stock is open in 3 processes of shop.",
							"description": "More than 25% of the processes have opened their local circuit while the shared circuit is closed. Check the network path to the service, and the storage.",
						},
					}},
				}},
			})
		})
	}
}

func last(values []string) string {
	if len(values) == 0 {
		return "missing"
	}
	return values[len(values)-1]
}
