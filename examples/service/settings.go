package main

// This file contains the settings of the service, and their reload.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/infuse-go/infuse"
)

// settings are read from a JSON file, and can be reloaded.
type settings struct {
	path    string
	storage infuse.Storage
	current atomic.Pointer[file]
}

type file struct {
	Listen, Redis, Inventory, Prices string
	Circuits                         map[string]infuse.Settings // by name; "" for all others
}

var listeners = []*infuse.Listener{infuse.LogListener(nil)} // one for all circuits, so that it logs an outage of Redis once

// read reads the file. If anything in it is invalid, the settings do not change.
func (s *settings) read() error {
	text, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	f := new(file)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields() // detects misspelled settings
	if err := decoder.Decode(f); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("%s has data after the settings", s.path)
	}
	for name, c := range f.Circuits {
		if invalid := c.Config().Validate(); invalid != nil {
			err = errors.Join(err, fmt.Errorf("circuit %q: %w", name, invalid))
		}
	}
	if err == nil {
		s.current.Store(f)
	}
	return err
}

// reload reads the file again, and applies the settings. Open circuits stay open.
func (s *settings) reload(breakers *infuse.Group) error {
	if err := s.read(); err != nil {
		return err
	}
	return breakers.Reload()
}

// of returns the settings of a circuit.
func (s *settings) of(name string) infuse.Config {
	circuits := s.current.Load().Circuits
	c, ok := circuits[name]
	if !ok {
		c = circuits[""]
	}
	cfg := c.Config()
	cfg.Storage, cfg.Listeners, cfg.CountCalls = s.storage, listeners, true
	return cfg
}
