package main

import (
	"encoding/json"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/infuse-go/infuse"
)

// settings are a file of JSON, with the settings of circuits by name; those of ""
// are for all others.
type settings struct {
	path    string
	storage infuse.Storage
	current atomic.Pointer[file]
}

type file struct {
	Listen, Redis, Inventory, Prices string
	Circuits                         map[string]struct {
		FailMax, MinCalls, ResetSeconds, RampSeconds int
		FailureRate                                  float64
	}
}

func (s *settings) file() *file { return s.current.Load() }

// reload reads the file again. Circuits stay as they are: what is open stays so.
func (s *settings) reload(breakers *infuse.Group) error {
	text, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	f := new(file)
	if err := json.Unmarshal(text, f); err != nil {
		return err
	}
	s.current.Store(f)
	if breakers == nil {
		return nil
	}
	for b := range breakers.All() {
		err = errors.Join(err, b.Configure(s.of(b.Name()))) // one that is not valid leaves the breaker as it was
	}
	return err
}

func (s *settings) of(name string) infuse.Config {
	c, ok := s.file().Circuits[name]
	if !ok {
		c = s.file().Circuits[""]
	}
	return infuse.Config{
		FailMax: c.FailMax, FailureRate: c.FailureRate, MinCalls: c.MinCalls,
		ResetTimeout: time.Duration(c.ResetSeconds) * time.Second, Ramp: time.Duration(c.RampSeconds) * time.Second,
		Storage: s.storage, Listeners: []*infuse.Listener{infuse.LogListener(nil)}, CountCalls: true,
	}
}
