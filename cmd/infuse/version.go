package main

// This file contains the command version.

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

// versionInfo is what infuse version reports.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// versionOf reads what the go command recorded in the binary.
func versionOf(info *debug.BuildInfo) versionInfo {
	v := versionInfo{
		Version:  cmp.Or(info.Main.Version, "(devel)"),
		Go:       cmp.Or(info.GoVersion, runtime.Version()),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Revision = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		}
	}
	return v
}

func (v versionInfo) String() string {
	text := "infuse " + v.Version
	if v.Revision != "" {
		text += ", revision " + v.Revision
	}
	if v.Modified {
		text += " with changes"
	}
	return fmt.Sprintf("%s (%s %s)", text, v.Go, v.Platform)
}

func version(_ context.Context, j *job) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = new(debug.BuildInfo)
	}
	v := versionOf(info)
	if j.json {
		return writeJSON(j.stdout, v, "  ")
	}
	_, err := fmt.Fprintln(j.stdout, plain(v.String()))
	return err
}
