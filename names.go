package infuse

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"
)

// This file gives a host one name, however it is written: the default circuit
// of a request.

// hostCircuit returns the circuit of an http or https URL: its host, with the
// port where that is not the scheme's. A host that is in that form already
// costs one look at each of its bytes.
func hostCircuit(u *url.URL) string {
	if host := u.Host; isHostCircuit(host, u.Scheme) {
		return host
	}
	return newHostCircuit(u)
}

// isHostCircuit reports whether there is certainly nothing to change.
func isHostCircuit(host, scheme string) bool {
	colon := -1
	for i := range len(host) {
		switch c := host[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '-':
		case c == ':' && colon < 0:
			colon = i
		default:
			return false
		}
	}
	name := host
	if colon >= 0 {
		name = host[:colon]
		if port := host[colon+1:]; port == "" || port == defaultPort(scheme) {
			return false
		}
	}
	return !strings.HasSuffix(name, ".")
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

func newHostCircuit(u *url.URL) string {
	host, port := u.Hostname(), u.Port()
	zone := ""
	if strings.Contains(host, ":") { // an IPv6 address; its zone is case-sensitive
		if i := strings.IndexByte(host, '%'); i >= 0 {
			host, zone = host[:i], host[i:]
		}
		host = "[" + strings.ToLower(host) + zone + "]"
	} else {
		host = asciiHost(strings.ToLower(host))
		if name := strings.TrimSuffix(host, "."); name != "" { // a root that is written out
			host = name
		}
	}
	if port == "" || port == defaultPort(u.Scheme) {
		return host
	}
	return host + ":" + port
}

// asciiHost returns a host in the form in which DNS has it, with Punycode for
// what is not ASCII. It is what net/http sends as the Host of a request, so
// net/http is asked: the module needs no library of its own for that.
func asciiHost(host string) string {
	if isASCII(host) || len(host) > 4*MaxNameLength {
		return host
	}
	var sent bytes.Buffer
	r := http.Request{URL: &url.URL{Host: host}}
	if r.Write(&sent) != nil {
		return host
	}
	_, after, _ := strings.Cut(sent.String(), "\r\nHost: ")
	name, _, _ := strings.Cut(after, "\r\n")
	if name == "" {
		return host
	}
	return name
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isLoopback reports whether a circuit's name is that of a host which is another
// one on each machine.
func isLoopback(circuit string) bool {
	host := circuit
	if h, _, err := net.SplitHostPort(circuit); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

var errLoopback = errors.New("infuse: a loopback host is another service on each machine, and its circuit is shared by all: name it by Transport.Circuit, or use no Storage")
