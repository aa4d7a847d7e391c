package infuse_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// http://h and http://h:80 had a circuit each, and so had "h" and "h.", and an
// international name and its ASCII form.
func TestAHostHasOneCircuitHoweverItIsWritten(t *testing.T) {
	for circuit, urls := range map[string][]string{
		"inventory.test": {
			"http://inventory.test/items?q=1", "https://inventory.test", "http://inventory.test:80", "https://inventory.test:443/",
			"http://inventory.test.", "https://inventory.test.:443", "http://inventory.test:", "https://user:word@INVENTORY.Test/items",
		},
		"inventory.test:443":             {"http://inventory.test:443", "http://Inventory.test.:443"},
		"inventory.test:80":              {"https://inventory.test:80"},
		"inventory.test:8443":            {"http://inventory.test:8443", "https://inventory.test:8443", "https://inventory.test.:8443/"},
		"snake_case.test":                {"http://snake_case.test", "http://Snake_Case.test:80"},
		"xn--bcher-kva.example":          {"http://bücher.example", "https://BÜCHER.example.", "https://xn--bcher-kva.example", "http://XN--BCHER-KVA.example:80", "http://b%C3%BCcher.example"},
		"xn--bcher-kva.example:8080":     {"http://bücher.example:8080", "https://xn--bcher-kva.example:8080"},
		"xn--fsqu00a.xn--0zwm56d":        {"http://例子.测试"},
		"xn--r8jz45g.xn--zckzah.example": {"http://例え.テスト.example"},
		"xn--h1alffa9f.xn--p1ai":         {"https://россия.рф", "https://РОССИЯ.РФ"},
		"127.0.0.1":                      {"http://127.0.0.1", "http://127.0.0.1:80", "https://127.0.0.1:443"},
		"127.0.0.1:8080":                 {"http://127.0.0.1:8080"},
		"[::1]":                          {"http://[::1]", "http://[::1]:80/", "https://[::1]:443"},
		"[2001:db8::a]:80":               {"https://[2001:DB8::A]:80"},
		"[fe80::1%Eth0]":                 {"http://[FE80::1%25Eth0]", "http://[fe80::1%25Eth0]:80"},
		"[fe80::1%eth0]:81":              {"http://[fe80::1%25eth0]:81"},
	} {
		transport := &infuse.Transport{Base: always(http.StatusInternalServerError, "ill"), Breakers: groupOf(t, infuse.Config{FailMax: 100})}
		for i, url := range urls {
			r := newRequest(t, http.MethodGet, url, nil)
			r.Host = "virtual.test"
			_, err := transport.RoundTrip(r)
			require.NoError(t, err)
			require.Equal(t, i+1, infuse.FailuresOf(breakerOf(t, transport.Breakers, circuit)), url)
		}
	}
}

// Hosts that are none still have a name, or none, and nothing panics.
func TestAHostThatIsNone(t *testing.T) {
	for host, circuit := range map[string]string{
		".":                         ".",
		"a..":                       "a.",
		"b\xfcb":                    "xn--bb-gg4n", // U+FFFD stands for what is no UTF-8
		strings.Repeat("ü", 1000):   "",
		strings.Repeat("a", 1000):   "",
		"xn--\u00fc" + "--.example": "",
	} {
		transport := &infuse.Transport{Base: always(http.StatusOK, ""), Breakers: groupOf(t, infuse.Config{})}
		r := newRequest(t, http.MethodGet, "http://inventory.test", nil)
		r.URL.Host = host
		_, err := transport.RoundTrip(r)
		require.NoError(t, err)
		for b := range transport.Breakers.All() {
			if circuit != "" {
				require.Equal(t, circuit, b.Name())
			}
			require.NoError(t, infuse.CheckName(b.Name()))
		}
	}
}

// What net/http dials for a name, and what the circuit is called, are the same.
func TestTheCircuitIsNamedAsTheHostIsDialled(t *testing.T) {
	for _, host := range []string{"bücher.example", "BÜCHER.Example", "faß.example", "россия.рф", "例子.测试", "a.例え.b"} {
		var dialled string
		base := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, errIll
		}}
		transport := &infuse.Transport{Base: base, Breakers: groupOf(t, infuse.Config{})}
		_, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://"+host, nil))
		require.ErrorIs(t, err, errIll)
		for b := range transport.Breakers.All() {
			require.Equal(t, dialled, b.Name()+":80")
		}
	}
}

func TestALoopbackHostThatIsSharedIsAMistake(t *testing.T) {
	for name, loopback := range map[string]bool{
		"localhost": true, "LOCALHOST:8080": true, "127.0.0.1:80": true, "127.9.9.9": true, "[::1]:8080": true, "[::1]": true, "::1": true,
		"[::ffff:127.0.0.1]:80": true, "inventory": false, "10.0.0.1": false, "localhost.example.com": false, "127.0.0.1.nip.io": false,
	} {
		for storage, shared := range map[infuse.Storage]bool{nil: false, infuse.NewMemoryStorage(): false, newRemote(): true} {
			var warnings []error
			listener := &infuse.Listener{Warning: func(_ *infuse.Breaker, err error) { warnings = append(warnings, err) }}
			startBreaker(t, name, infuse.Config{Storage: storage, Listeners: []*infuse.Listener{listener}})
			if loopback && shared {
				require.Len(t, warnings, 1, name)
				require.ErrorContains(t, warnings[0], "loopback")
			} else {
				require.Empty(t, warnings, name)
			}
		}
	}
	var text strings.Builder
	startBreaker(t, "localhost:80", infuse.Config{Storage: newRemote(), Listeners: []*infuse.Listener{infuse.LogListener(slog.New(slog.NewTextHandler(&text, nil)))}})
	require.Contains(t, text.String(), `level=WARN msg="circuit warning" circuit=localhost:80`)
}
