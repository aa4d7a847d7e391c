package ops

// This file contains the checks of the Host header and of the client address.

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// hosts is the set of allowed host names, in lower case.
type hosts map[string]bool

func newHosts(names []string) (hosts, error) {
	h := make(hosts)
	var all error
	for _, name := range names {
		lower := strings.ToLower(strings.TrimSuffix(name, "."))
		if !isHostName(lower) {
			all = errors.Join(all, fmt.Errorf("ops: Options.Hosts: invalid host %q: want a name without scheme and port, such as ops.example.com", name))
		}
		h[lower] = true
	}
	return h, all
}

func isHostName(lower string) bool {
	if _, err := netip.ParseAddr(lower); err == nil {
		return true
	}
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	return lower != "" && !strings.ContainsFunc(lower, other)
}

// allow reports whether a request with that Host header is answered. IP addresses and
// loopback names are safe: DNS rebinding needs a name that an attacker owns.
func (h hosts) allow(host string) bool {
	name := nameOf(host)
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || h[name]
}

// nameOf returns the host name or IP address in a Host header, without port.
func nameOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	} else if strings.HasPrefix(host, "[") {
		host = strings.TrimSuffix(host[1:], "]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// client returns the client that makes the request.
func (h *handler) client(r *http.Request) string {
	if h.Client != nil {
		if name := h.Client(r); name != "" {
			return "client " + name
		}
	}
	return network(r.RemoteAddr)
}

// network returns the IP address without port. For IPv6 it returns the /64 network,
// because one host usually has all its addresses.
func network(remote string) string {
	address, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	ip := address.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, _ := ip.Prefix(64) // 64 is valid for IPv6
	return prefix.String()
}
