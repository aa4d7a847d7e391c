package integrations

// This file shows settings in YAML.

import (
	"sync/atomic"

	"gopkg.in/yaml.v3"

	"github.com/infuse-go/infuse"
)

// Settings are the settings of circuits by name. A circuit without settings has the defaults.
type Settings struct {
	atomic.Pointer[map[string]infuse.Settings]
}

// Read reads the settings from YAML.
func (s *Settings) Read(text []byte) error {
	settings := make(map[string]infuse.Settings)
	if err := yaml.Unmarshal(text, &settings); err != nil {
		return err
	}
	s.Store(&settings)
	return nil
}

// Config returns the settings of a circuit, for infuse.NewGroupFunc.
func (s *Settings) Config(circuit string) infuse.Config { return (*s.Load())[circuit].Config() }
