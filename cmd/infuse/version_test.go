package main

// This file tests the command version.

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	d := cliAt(t, "redis://127.0.0.1:1") // no server is needed
	require.Regexp(t, `^infuse \S.* \(`+runtime.Version()+` \w+/\w+\)\n$`, d.mustRun("version"))
	var v versionInfo
	d.mustDecode(&v, "version")
	require.NotEmpty(t, v.Version)
	require.Equal(t, runtime.Version(), v.Go)
	_, _, code := d.exec("version", "prices")
	require.Equal(t, exitUsage, code)
}

func TestVersionOfABuild(t *testing.T) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	revision := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "4779861c"}, {Key: "vcs.modified", Value: "false"}}
	modified := []debug.BuildSetting{{Key: "vcs.revision", Value: "4779861c"}, {Key: "vcs.modified", Value: "true"}}
	for _, test := range []struct {
		name, version string
		settings      []debug.BuildSetting
		want          string
	}{
		{"go install", "v0.1.0", nil, "infuse v0.1.0 (go1.25.0 " + platform + ")"},
		{"go build at a tag", "v0.1.0", revision, "infuse v0.1.0, revision 4779861c (go1.25.0 " + platform + ")"},
		{"go build after changes", "v0.1.0+dirty", modified, "infuse v0.1.0+dirty, revision 4779861c with changes (go1.25.0 " + platform + ")"},
		{"a build without version control", "", nil, "infuse (devel) (go1.25.0 " + platform + ")"},
	} {
		t.Run(test.name, func(t *testing.T) {
			info := &debug.BuildInfo{GoVersion: "go1.25.0", Main: debug.Module{Version: test.version}, Settings: test.settings}
			require.Equal(t, test.want, versionOf(info).String())
		})
	}
}
