package main

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// reload reads the file again. One with a mistake changes nothing. Circuits stay as
// they are: what is open stays so.
func (s *settings) reload(breakers *infuse.Group) error {
	text, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	f, decoder := new(file), json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(f); err != nil {
		return err
	}
	for name := range f.Circuits {
		if _, err := infuse.NewGroup(f.of(name)); err != nil { // which checks them, and no more
			return fmt.Errorf("circuit %q: %w", name, err)
		}
	}
	s.current.Store(f)
	if breakers == nil {
		return nil
	}
	return breakers.Configure(s.of("")) // asks of for each circuit
}

// of returns the settings of a circuit.
func (s *settings) of(name string) infuse.Config {
	config := s.file().of(name)
	config.Storage, config.CountCalls = s.storage, true
	config.Listeners = []*infuse.Listener{infuse.LogListener(nil)}
	return config
}

func (f *file) of(name string) infuse.Config {
	c, ok := f.Circuits[name]
	if !ok {
		c = f.Circuits[""]
	}
	return infuse.Config{
		FailMax: c.FailMax, FailureRate: c.FailureRate, MinCalls: c.MinCalls,
		ResetTimeout: time.Duration(c.ResetSeconds) * time.Second, Ramp: time.Duration(c.RampSeconds) * time.Second,
	}
}
