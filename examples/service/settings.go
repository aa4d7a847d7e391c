package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// reload reads the file again. Where anything in it is wrong, all settings stay as
// they were. Circuits stay as they are: what is open stays so.
func (s *settings) reload(breakers *infuse.Group) error {
	f, err := read(s.path)
	if err != nil {
		return err
	}
	s.current.Store(f)
	if breakers == nil {
		return nil
	}
	return breakers.Configure(s.of("")) // asks of for each circuit
}

// read reads a file whose settings are valid.
func read(path string) (*file, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := new(file)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields() // a setting that is misspelt
	if err := decoder.Decode(f); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s goes on behind its settings", path)
	}
	for name := range f.Circuits {
		if _, invalid := infuse.NewGroup(f.of(name)); invalid != nil { // which checks them, and no more
			err = errors.Join(err, fmt.Errorf("circuit %q: %w", name, invalid))
		}
	}
	return f, err
}

// of returns the settings of a circuit.
func (s *settings) of(name string) infuse.Config {
	c := s.file().of(name)
	c.Storage = s.storage
	return c
}

func (f *file) of(name string) infuse.Config {
	c, ok := f.Circuits[name]
	if !ok {
		c = f.Circuits[""]
	}
	return infuse.Config{
		FailMax: c.FailMax, FailureRate: c.FailureRate, MinCalls: c.MinCalls,
		ResetTimeout: time.Duration(c.ResetSeconds) * time.Second, Ramp: time.Duration(c.RampSeconds) * time.Second,
		Listeners: []*infuse.Listener{infuse.LogListener(nil)}, CountCalls: true,
	}
}
