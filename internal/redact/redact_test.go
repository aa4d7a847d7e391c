package redact

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"":      "",
		"plain": "plain",
		"why?":  "why?",
		"a://b": "a://b",
		`Get "https://u:p@h:8/p/q?token=s#f": EOF`:                     `Get "https://h:8/p/q?…`,
		"GET https://a.net/t?$filter=name eq 'ann'&sig=TOPSECRET: 500": "GET https://a.net/t?…",
		"https://h?x=1 and http://a@b/c":                               "https://h?…",
		"https://h/x and http://a@b/c and http://d#e":                  "https://h/x and http://b/c and http://d#…",
		"redis://:secret@h":                                            "redis://h",
		"redis://:pass#word@h":                                         "redis://…",
		"postgres://user:pa/ss@h/db":                                   "postgres://…",
		"https://u:a@b:c#d@h":                                          "https://…",
		"https://u:x://y@h":                                            "https://…",
		"redis://a:b@h redis://c:d@e":                                  "redis://h redis://e",
		"https://us er:p\"w<d@h/p":                                     "https://h/p",
		"dial https://h:8080: connection refused":                      "dial https://h:8080: connection refused",
		"dial https://h: no such host":                                 "dial https://h: no such host",
		`Post "https://[fe80::1%25en0]:443/p": dial tcp [fe80::1%en0]:443: no route to host`: `Post "https://[fe80::1%25en0]:443/p": dial tcp [fe80::1%en0]:443: no route to host`,
		"https://bücher.example/ü":             "https://bücher.example/ü",
		"https://h/users/ann@example.com: 404": "https://h/users/ann@example.com: 404",
		"://":                                  "://",
		"x://@/?":                              "x:///?…",
	} {
		require.Equal(t, want, Text(text), "%q", text)
	}
}

func TestErrorKeepsTheWrappedError(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	get := &url.Error{Op: "Get", URL: `https://h/p?$filter=name eq "ann": x&sig=TOPSECRET`, Err: refused}
	for want, err := range map[string]error{
		"plain":                         errors.New("plain"),
		"GET https://a.net/t?…":         errors.New("GET https://a.net/t?$filter=name eq 'ann'&sig=TOPSECRET: 500"),
		"dial tcp: connection refused":  refused,
		"reading: no https://h/p: gone": fmt.Errorf("reading: %w", fmt.Errorf("no https://u:p@h/p: %w", errors.New("gone"))),
		`orders: Get "https://h/p?…": dial tcp: connection refused`: fmt.Errorf("orders: %w", get),
		`orders: (Get "https://h/p?…`:                               fmt.Errorf("orders: (%w)", get),
		"two https://h/?…":                                          fmt.Errorf("two https://h/?a=%d, %w, %w", 1, get, errors.New("x")),
		`Get "https://h/?…": Get "https://h/p?…": http://h/?…`:      &url.Error{Op: "Get", URL: "https://h/?x", Err: &url.Error{Op: "Get", URL: "https://h/p?y", Err: errors.New("http://h/?z")}},
		"https://h/p?… context deadline exceeded":                   fmt.Errorf("https://h/p?x=1 failed with %w", errors.New("context deadline exceeded")),
	} {
		require.Equal(t, want, Error(err))
	}
}

// A quote ended a URL, so the signature after it stayed in the cause.
// R42.
func TestSecretsAreRemoved(t *testing.T) {
	const secret = 'S' // nothing else contains it
	parts := []string{" ", `"`, "'", "`", "<", ">", "%", "%20", "\\", `\"`, ": ", `": `, ", ", "(", ")", "&", "=", "$", ";", "|", "{", "}", "\n", "\t", "\x00", "\xff", "é", "x", "7", ".", "-", "+", "!", "*", "[", "]"}
	anything := func(more ...string) string {
		var b strings.Builder
		all := append(more, parts...)
		for range rand.IntN(12) {
			b.WriteString(all[rand.IntN(len(all))])
			if rand.IntN(2) == 0 {
				b.WriteByte(secret)
			}
		}
		return b.String()
	}
	for range 200_000 {
		var text strings.Builder
		text.WriteString([]string{"", "GET ", `Get "`, "(", "https://first/p ", `{"url":"`}[rand.IntN(6)])
		text.WriteString([]string{"https://", "redis://", "X+y.z://", "://"}[rand.IntN(4)])
		if rand.IntN(2) == 0 {
			fmt.Fprintf(&text, "%c%s:%c%s@", secret, anything(":", "@"), secret, anything(":", "@"))
		}
		text.WriteString([]string{"h", "h:80", "[::1]", "[::1]:80", "a.b-c_d", ""}[rand.IntN(6)])
		text.WriteString([]string{"", "/", "/p", "/p/q.r", "/@p", "/p q"}[rand.IntN(6)])
		if rand.IntN(4) > 0 {
			text.WriteString([]string{"?", "#"}[rand.IntN(2)])
			text.WriteString(anything("/", "?", "#", "://", "@", "https://"))
		}
		kept := Text(text.String())
		require.NotContains(t, kept, string(secret), "%q", text.String())
		err := fmt.Errorf("%s: %w", text.String(), errors.New("inner"))
		kept = Error(err)
		require.NotContains(t, kept, string(secret), "%q", err)
		require.True(t, strings.HasSuffix(kept, "inner"), "%q", err)
		_, request := (&failing{}).RoundTrip(text.String())
		require.NotContains(t, Error(request), string(secret), "%q", request)
	}
}

// failing returns errors like those of an http.Client.
type failing struct{}

func (*failing) RoundTrip(target string) (int, error) {
	return 0, &url.Error{Op: "Get", URL: target, Err: errors.New("failed")}
}

func BenchmarkError(b *testing.B) {
	for name, err := range map[string]error{
		"plain":     errors.New("503 Service Unavailable"),
		"url":       &url.Error{Op: "Get", URL: "https://h/p", Err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}},
		"query":     &url.Error{Op: "Get", URL: "https://u:p@h/p?a=b&sig=x", Err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}},
		"text only": errors.New(`Get "https://u:p@h/p?a=b&sig=x": connection refused`),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = Error(err)
			}
		})
	}
}

func FuzzText(f *testing.F) {
	f.Add(`Get "https://u:p@h:8/p/q?token=s#f": EOF`)
	f.Fuzz(func(t *testing.T, text string) {
		kept := Text(text)
		_, after, found := strings.Cut(kept, scheme)
		if i := strings.IndexAny(after, "?#"); found && i >= 0 && after[i+1:] != more {
			t.Fatalf("%q becomes %q", text, kept)
		}
	})
}
