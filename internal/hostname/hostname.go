// Package hostname returns one name for a host, for all spellings of its URL.
package hostname

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxLength is the number of bytes above which a host is not converted to Punycode: it is
// longer than any circuit name.
const maxLength = 1024

// Of returns the host of an http or https URL in lower case and Punycode, with the
// port if that is not the default port of the scheme. For a host that is already in this
// form, it takes one pass over the bytes.
func Of(u *url.URL) string {
	if isNormal(u.Host, u.Scheme) {
		return u.Host
	}
	return normalize(u)
}

// isNormal reports whether the host certainly needs no change.
func isNormal(host, scheme string) bool {
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

func normalize(u *url.URL) string {
	host, port := u.Hostname(), u.Port()
	zone := ""
	if strings.Contains(host, ":") { // an IPv6 address; its zone is case-sensitive
		if i := strings.IndexByte(host, '%'); i >= 0 {
			host, zone = host[:i], host[i:]
		}
		host = "[" + strings.ToLower(host) + zone + "]"
	} else {
		host = ascii(strings.ToLower(host))
		if name := strings.TrimSuffix(host, "."); name != "" { // a trailing dot is the root of DNS
			host = name
		}
	}
	if port == "" || port == defaultPort(u.Scheme) {
		return host
	}
	return host + ":" + port
}

// ascii returns a host in Punycode. It uses the conversion that net/http does for the Host
// header, so that the module needs no library.
func ascii(host string) string {
	if isASCII(host) || len(host) > maxLength {
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

// IsLoopback reports whether a host, with or without a port, is a loopback host, which is
// a different service on every machine.
func IsLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}
