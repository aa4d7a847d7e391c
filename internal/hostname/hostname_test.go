package hostname_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse/internal/hostname"
)

func TestNormalHostAllocatesNothing(t *testing.T) {
	for _, host := range []string{"inventory.test", "127.0.0.1:8080", "xn--bcher-kva.example:8443"} {
		u := &url.URL{Scheme: "https", Host: host}
		require.Zero(t, testing.AllocsPerRun(100, func() { hostname.Of(u) }), host)
	}
}

// Of is idempotent for any host.
func FuzzOf(f *testing.F) {
	for _, host := range []string{"Inventory.test:80", "[fe80::1%25Eth0]:443", "bücher.example.", "a..", ":", "]", "\xff", "xn--ü", "%"} {
		f.Add(host, true)
	}
	f.Fuzz(func(t *testing.T, host string, secure bool) {
		scheme := "http"
		if secure {
			scheme = "https"
		}
		u, err := url.Parse(scheme + "://" + host + "/")
		if err != nil || u.Host == "" || len(u.Host) > 256 {
			return
		}
		name := hostname.Of(u)
		if again := hostname.Of(&url.URL{Scheme: scheme, Host: name}); again != name && !strings.HasSuffix(u.Hostname(), "..") {
			t.Fatalf("%q becomes %q, and that becomes %q", u.Host, name, again)
		}
	})
}
