package infuse

import (
	"fmt"
	"time"
)

// This file has settings as plain data, for a file or the environment.

// Settings are the fields of Config that are plain data, to be read from JSON, YAML
// or the environment by any library that uses encoding.TextUnmarshaler. A duration is
// a text such as "1m30s". The zero value of a field has the meaning that it has in
// Config. Config makes a Config of them; Config.Validate finds invalid values.
type Settings struct {
	FailMax          int               `json:"failMax,omitempty" yaml:"failMax,omitempty"`
	Suspicion        Duration          `json:"suspicion,omitempty" yaml:"suspicion,omitempty"`
	FailureRate      float64           `json:"failureRate,omitempty" yaml:"failureRate,omitempty"`
	Window           Duration          `json:"window,omitempty" yaml:"window,omitempty"`
	MinCalls         int               `json:"minCalls,omitempty" yaml:"minCalls,omitempty"`
	SlowCall         Duration          `json:"slowCall,omitempty" yaml:"slowCall,omitempty"`
	ResetTimeout     Duration          `json:"resetTimeout,omitempty" yaml:"resetTimeout,omitempty"`
	MaxResetTimeout  Duration          `json:"maxResetTimeout,omitempty" yaml:"maxResetTimeout,omitempty"`
	MaxRetryAfter    Duration          `json:"maxRetryAfter,omitempty" yaml:"maxRetryAfter,omitempty"`
	Ramp             Duration          `json:"ramp,omitempty" yaml:"ramp,omitempty"`
	SuccessThreshold int               `json:"successThreshold,omitempty" yaml:"successThreshold,omitempty"`
	MaxTrials        int               `json:"maxTrials,omitempty" yaml:"maxTrials,omitempty"`
	TrialTimeout     Duration          `json:"trialTimeout,omitempty" yaml:"trialTimeout,omitempty"`
	Strict           bool              `json:"strict,omitempty" yaml:"strict,omitempty"`
	StorageTimeout   Duration          `json:"storageTimeout,omitempty" yaml:"storageTimeout,omitempty"`
	StorageDown      StorageDownPolicy `json:"storageDown,omitempty" yaml:"storageDown,omitempty"`
	DryRun           bool              `json:"dryRun,omitempty" yaml:"dryRun,omitempty"`
	Instance         string            `json:"instance,omitempty" yaml:"instance,omitempty"`
	CountCalls       bool              `json:"countCalls,omitempty" yaml:"countCalls,omitempty"`
	MaxCircuits      int               `json:"maxCircuits,omitempty" yaml:"maxCircuits,omitempty"`
}

// Config returns a Config with these settings. Its Storage, Listeners, Classify and
// Exclude are for the caller to set. It checks nothing.
func (s Settings) Config() Config {
	return Config{
		FailMax: s.FailMax, Suspicion: time.Duration(s.Suspicion),
		FailureRate: s.FailureRate, Window: time.Duration(s.Window), MinCalls: s.MinCalls,
		SlowCall:     time.Duration(s.SlowCall),
		ResetTimeout: time.Duration(s.ResetTimeout), MaxResetTimeout: time.Duration(s.MaxResetTimeout), MaxRetryAfter: time.Duration(s.MaxRetryAfter),
		Ramp:             time.Duration(s.Ramp),
		SuccessThreshold: s.SuccessThreshold, MaxTrials: s.MaxTrials, TrialTimeout: time.Duration(s.TrialTimeout),
		Strict: s.Strict, StorageTimeout: time.Duration(s.StorageTimeout), StorageDown: s.StorageDown,
		DryRun: s.DryRun, Instance: s.Instance, CountCalls: s.CountCalls, MaxCircuits: s.MaxCircuits,
	}
}

// Duration is a time.Duration whose text is that of time.ParseDuration, such as
// "1m30s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("infuse: %.80q is not a duration such as \"1m30s\"", text)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (p StorageDownPolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: "local", "allow" or "reject".
func (p *StorageDownPolicy) UnmarshalText(text []byte) error {
	for known := StorageDownLocal; known <= StorageDownReject; known++ {
		if known.String() == string(text) {
			*p = known
			return nil
		}
	}
	return fmt.Errorf("infuse: %.80q is not \"local\", \"allow\" or \"reject\"", text)
}
