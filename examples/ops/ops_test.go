package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var pageOf = regexp.MustCompile(`^process-(\d): ops page (http://\S+),`)

// Three processes show their circuits, one of which opens. An override that is set in one
// process reaches the others. The program ends on a signal.
func TestExample(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("requires signals")
	}
	binary := filepath.Join(t.TempDir(), "ops.exe")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	program := exec.CommandContext(t.Context(), binary, "-listen", "127.0.0.1:0", "-healthy", "2s", "-failing", "5m")
	stdout, err := program.StdoutPipe()
	require.NoError(t, err)
	var stderr strings.Builder
	program.Stderr = &stderr
	require.NoError(t, program.Start())

	pages := make(map[string]string)
	lines := bufio.NewScanner(stdout)
	for len(pages) < processes && lines.Scan() {
		if m := pageOf.FindStringSubmatch(lines.Text()); m != nil {
			pages[m[1]] = m[2]
		}
	}
	require.Len(t, pages, processes, stderr.String())
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, stdout) }()

	require.Contains(t, get(t, pages["1"]), "Answered by <bdi>process-1</bdi>")
	for _, page := range pages {
		metrics := strings.Replace(page, "/infuse/", "/metrics", 1)
		eventually(t, func() bool { return strings.Contains(get(t, page), "inventory") }, page)
		eventually(t, func() bool {
			return strings.Contains(get(t, metrics), `infuse_circuit_state{circuit="inventory",state="open"} 1`)
		}, metrics)
		eventually(t, func() bool {
			return regexp.MustCompile(`infuse_circuit_calls_total\{circuit="prices",outcome="success"\} [1-9]`).MatchString(get(t, metrics))
		}, metrics)
	}
	require.True(t, json.Valid([]byte(get(t, pages["1"]+"circuits.json"))))

	// An override applies to all processes. Forms of other sites are rejected.
	response, err := http.PostForm(pages["1"]+"change?circuit=prices", url.Values{"do": {"force-open"}, "reason": {"migration"}, "confirm": {"yes"}})
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	eventually(t, func() bool { return strings.Contains(get(t, pages["3"]), "<bdi>migration</bdi>") }, pages["3"])
	request, err := http.NewRequest(http.MethodPost, pages["1"]+"change", strings.NewReader(url.Values{"circuit": {"prices"}}.Encode()))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Origin", "http://elsewhere.example")
	response, err = http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusForbidden, response.StatusCode)

	require.NoError(t, program.Process.Signal(syscall.SIGTERM))
	<-drained // all children have ended
	require.NoError(t, program.Wait())
	require.Regexp(t, `^[^\n]+ INFO circuit changed manually circuit=prices [^\n]+\n$`, stderr.String())
	_, err = http.Get(pages["1"])
	require.Error(t, err)
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s: %s", url, body)
	return string(body)
}

func eventually(t *testing.T, is func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		require.True(t, time.Now().Before(end), what)
	}
}
