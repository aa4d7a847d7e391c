package infuse

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestACauseNamesNoSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain",
		"GET https://a.net/t?$filter=name eq 'ann'&sig=TOPSECRET: 500": "GET https://a.net/t?…",
		"redis://:secret@h": "redis://h",
		"two\nlines\x00":    "two lines ",
	} {
		require.Equal(t, want, presentable(text, 200), "%q", text)
	}
	require.Len(t, presentable(strings.Repeat("é", 500), 200), 200)
	require.True(t, utf8.ValidString(presentable(strings.Repeat("\xff日", 500), 199)))
}

// errors.Is(rejection.Cause, syscall.ECONNREFUSED) was false, and records had
// the whole URL.
func TestACauseKeepsItsRoot(t *testing.T) {
	err := &url.Error{Op: "Get", URL: "https://h/?token=s", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	c := causeOf(err)
	require.ErrorIs(t, c, syscall.ECONNREFUSED)
	require.Equal(t, "connection refused", textOf(c))
	require.NotContains(t, c.Error(), "token")
	require.Equal(t, errIllTest, causeOf(errIllTest))
	require.Equal(t, keptCause{}, keepCause(nil))
	require.Empty(t, textOf(nil))
	wrapped := causeOf(fmt.Errorf("reading: %w", &url.Error{Op: "Get", URL: "x", Err: errors.New("inner")}))
	require.Equal(t, "inner", textOf(wrapped))
}

var errIllTest = errors.New("ill")

func FuzzPresentable(f *testing.F) {
	f.Add(`Get "https://u:p@h:8/p/q?token=s#f": EOF`, 20)
	f.Fuzz(func(t *testing.T, text string, most int) {
		if most < 0 || most > 1000 {
			return
		}
		got := presentable(text, most)
		if len(got) > most || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00") {
			t.Fatalf("%q", got)
		}
	})
}
