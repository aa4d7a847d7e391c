package connectinfuse

import (
	"net"
	"strings"
)

// target returns the name of the host that a client calls.
func (i *Interceptor) target(addr string) string {
	if last := i.last.Load(); last != nil && last.target == addr {
		return last.name
	}
	name := hostName(addr)
	i.last.Store(&targetName{addr, name})
	return name
}

// hostName gives a host with a port or without one name, however it is written.
// The scheme is not known, so that the ports of both are left out.
func hostName(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		host, port = strings.Trim(addr, "[]"), ""
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" || port == "443" || port == "80" {
		return host
	}
	return host + ":" + port
}
